"""Memory of a runtime that is given back, in a process that holds no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

MEGABYTES = 200

RESIDENT = """
from pathlib import Path
import numpy as np
from ptqd_export.measuring.trim_heap import trim_heap

def resident():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
"""

ACTIVATIONS = """
import sys
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine

engine = OnnxRuntimeEngine(Path(sys.argv[1]), threads=1)
x = {"x": np.ones((1, 1), dtype=np.float32)}
trim_heap()
before = resident()
engine.run(x)
grown = resident() - before
trim_heap()
print(grown, resident() - before)
assert engine.run(x) == 1
"""


def _grown_and_left(script: str, *arguments: str) -> tuple[float, float]:
    """MiB that a process took, and those that it still had after giving memory back."""
    command = [sys.executable, "-c", RESIDENT + script, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown, left = map(float, printed.split())
    return grown, left


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for what is resident")
def test_activations_of_a_runtime_that_is_still_open_are_given_back(tmp_path: Path) -> None:
    side = 2**9
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["wider"]),
        helper.make_node("Exp", ["wider"], ["high"]),
        helper.make_node("Div", ["high", "high"], ["ones"]),
        helper.make_node("ReduceMean", ["ones"], ["mean"]),
        helper.make_node("Mul", ["x", "mean"], ["out"]),
    ]
    wide = helper.make_tensor("wide", TensorProto.INT64, [2], [MEGABYTES * side // 2, side])
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("x", "out"))
    graph = helper.make_graph(nodes, "wide", [x], [out], [wide])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "wide.onnx")
    grown, left = _grown_and_left(ACTIVATIONS, str(tmp_path / "wide.onnx"))
    assert grown > 0.8 * MEGABYTES
    assert left < 0.2 * MEGABYTES
