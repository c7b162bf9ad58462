"""What an engine needs, of a network whose sizes are known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.bench.engine_memory import EngineMemory, weights_bytes

WIDTH, ROWS = 4096, 256

SCRIPT = """
import sys
from pathlib import Path

import numpy as np

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from tools.bench.engine_memory import arena_growth

engine = OnnxRuntimeEngine(Path(sys.argv[1]), threads=1)
feeds = {"x": np.ones((int(sys.argv[2]), 16), dtype=np.float32)}
print(arena_growth(lambda: engine.run(feeds)), arena_growth(lambda: None))
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """`tanh(x w) w^T`: between the products lie WIDTH values a row, which the hyperbolic tangent replaces."""
    weight = np.full((16, WIDTH), 0.01, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bounded"]),
        helper.make_node("MatMul", ["bounded", "w_transposed"], ["out"]),
    ]
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16]) for name in ("x", "out"))
    initializers = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight.T.copy(), "w_transposed")]
    model = helper.make_model(helper.make_graph(nodes, "wide", [x], [out], initializers), ir_version=10)
    model.opset_import[0].version = 21
    onnx.save(model, tmp_path / "wide.onnx")
    return tmp_path / "wide.onnx"


def test_weights_are_those_of_the_graph_that_runs(graph: Path) -> None:
    assert weights_bytes(graph) == 2 * 4 * 16 * WIDTH


def test_activations_are_what_the_arena_takes(graph: Path) -> None:
    printed = subprocess.run([sys.executable, "-c", SCRIPT, str(graph), str(ROWS)], capture_output=True, text=True, check=True).stdout
    during, after = map(int, printed.split())
    wide = 4 * ROWS * WIDTH
    assert wide <= during < 2 * wide
    assert after == 0


def test_an_engine_needs_both() -> None:
    assert EngineMemory(3.0, 4.0).mib == 7
