"""Graphs as ONNX Runtime optimized them here: the same network, its weights mapped; nothing that was changed, or is for another machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends.choice import on_onnxruntime
from engines.backends.onnxruntime import optimized_graphs
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, OnnxRuntimeEngine
from engines.backends.onnxruntime.optimized_graphs import RECORD, OptimizedGraphs
from engines.bundle.bundle import Bundle
from engines.errors import PtqdError
from engines.host.files import sha256

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

CHANNELS, SIDE = 32, 8
FEEDS = {"x": np.random.default_rng(0).normal(size=(2, CHANNELS, SIDE, SIDE)).astype(np.float32)}
"""Two samples, as they go through two workers."""


OPENED = """
import sys
from pathlib import Path

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.host.files import sha256

graph, made = Path(sys.argv[1]), sys.argv[2] == "optimized"
optimized = OptimizedGraphs(graph.parent / "optimized", {graph: sha256(graph)})

def private():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

OnnxRuntimeBackend(threads=1).open(Path(sys.argv[3]), 1)
before = private()
engine = OnnxRuntimeBackend(threads=1, optimized=optimized if made else None).open(graph, 1)
print(private() - before)
"""
"""Prints the memory of its own that a process takes to open a graph, behind a small one that loads the runtime."""


def convolutions(path: Path, seed: int = 0) -> Path:
    """One in float32, then one in integers: kernels of both kinds have layouts of their own for weights."""
    rng = np.random.default_rng(seed)
    shape = (CHANNELS, CHANNELS, 3, 3)
    constants = {
        "float": rng.normal(size=shape).astype(np.float32), "integer": rng.integers(-8, 8, shape).astype(np.int8),
        "scale": np.float32(0.05), "zero": np.uint8(128), "weight_zero": np.int8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "float"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["yd"]),
        helper.make_node("DequantizeLinear", ["integer", "scale", "weight_zero"], ["wd"]),
        helper.make_node("Conv", ["yd", "wd"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["z", "scale", "zero"], ["zq"]),
        helper.make_node("DequantizeLinear", ["zq", "scale", "zero"], ["out"]),
    ]
    x, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE]) for name in ("x", "out"))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolutions", [x], [out], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return convolutions(tmp_path / "w8a8.onnx")


@pytest.fixture
def optimized(tmp_path: Path, graph: Path) -> OptimizedGraphs:
    return OptimizedGraphs(tmp_path / "optimized", {graph: sha256(graph)})


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


def test_what_the_runtime_made_of_a_graph_is_kept(optimized: OptimizedGraphs, graph: Path) -> None:
    assert optimized.find(graph) is None
    first, second = optimized.get(graph), optimized.get(graph)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.path == second.path == optimized.find(graph)
    model = onnx.load(first.path, load_external_data=False)
    assert "QLinearConv" in {node.op_type for node in model.graph.node}
    assert sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer if not tensor.external_data) < 8 * CHANNELS
    assert {path.name for path in first.path.parent.iterdir()} == {"w8a8.onnx", "w8a8.onnx.data", RECORD}
    assert list(first.path.parents[1].iterdir()) == [first.path.parent]


def test_its_engine_is_the_same_to_the_last_bit(optimized: OptimizedGraphs, graph: Path) -> None:
    optimized.get(graph)
    plain, ready = OnnxRuntimeBackend(threads=2), OnnxRuntimeBackend(threads=2, optimized=optimized)
    expected = plain.open(graph, 2).run(FEEDS)
    assert len(np.unique(expected)) > 100
    engine = ready.open(graph, 2)
    assert engine.label == "w8a8 on ONNX Runtime"
    np.testing.assert_array_equal(engine.run(FEEDS), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems show their maps elsewhere")
def test_weights_that_kernels_read_as_they_are_stay_pages_of_the_file(optimized: OptimizedGraphs, graph: Path) -> None:
    path = optimized.get(graph).path
    assert str(path) not in mapped_files()
    engine = OnnxRuntimeBackend(optimized=optimized).open(graph, 1)
    assert f"{path}.data" in mapped_files()
    del engine
    assert str(path) not in mapped_files()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for what is resident")
def test_weights_take_no_memory_of_the_process(tmp_path: Path, optimized: OptimizedGraphs, graph: Path) -> None:
    wide, channels = tmp_path / "wide.onnx", 1024
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((channels, channels, 3, 3), dtype=np.float32), "w")
    ends = [value(name, TensorProto.FLOAT, ["N", channels, 4, 4]) for name in ("x", "out")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["out"], pads=[1, 1, 1, 1])]
    made = helper.make_graph(nodes, "wide", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), wide)
    OptimizedGraphs(optimized.folder, {wide: sha256(wide)}).get(wide)
    weights = 4 * 9 * channels**2

    def taken(how: str) -> int:
        command = [sys.executable, "-c", OPENED, str(wide), how, str(graph)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert taken("optimized") < 0.2 * weights
    assert 0.9 * weights < taken("plain") < 1.5 * weights


def test_a_graph_that_was_exchanged_is_optimized_anew_and_the_old_one_removed(optimized: OptimizedGraphs, graph: Path) -> None:
    old = optimized.get(graph).path
    convolutions(graph, seed=1)
    other = OptimizedGraphs(optimized.folder, {graph: sha256(graph)})
    assert other.find(graph) is None
    new = other.get(graph)
    (old.parents[1] / ".left-by-a-killed-writer").mkdir()
    other.keep([graph])
    assert not new.from_cache
    assert list(new.path.parents[1].iterdir()) == [new.path.parent]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("processor", lambda: "Another processor"),
        ("instructions", lambda: frozenset({"avx9"})),
        ("told_instructions", lambda: frozenset({"AVX2"})),
        ("session_config", lambda _mode: {"session.x64quantprecision": "2"}),
    ],
)
def test_it_is_for_this_machine_alone(
    optimized: OptimizedGraphs, graph: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    optimized.get(graph)
    monkeypatch.setattr(optimized_graphs, name, other)
    monkeypatch.setattr(optimized_graphs, "_machine", optimized_graphs._machine.__wrapped__)
    assert optimized.find(graph) is None


@pytest.mark.parametrize("name", ["w8a8.onnx", "w8a8.onnx.data", RECORD])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_is_told_and_mended(optimized: OptimizedGraphs, graph: Path, name: str, damage: str) -> None:
    file = optimized.get(graph).path.with_name(name)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(PtqdError, match="An optimized graph was changed or damaged") as caught:
        OnnxRuntimeBackend(optimized=optimized).open(graph, 1)
    assert str(file.parent) in str(caught.value)
    assert not optimized.get(graph).from_cache
    assert optimized.find(graph) is not None


def test_it_reads_no_file_of_others_whatever_its_record_says(optimized: OptimizedGraphs, graph: Path) -> None:
    path = optimized.get(graph).path
    model = onnx.load(path, load_external_data=False)
    (location, *_) = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    location.value = "../../secret"
    path.write_bytes(model.SerializeToString())
    record = json.loads(path.with_name(RECORD).read_text())
    record["files"][path.name] = sha256(path)
    path.with_name(RECORD).write_text(json.dumps(record))
    with pytest.raises(PtqdError, match="changed or damaged"):
        optimized.find(graph)


def test_nothing_is_left_of_a_graph_that_the_runtime_refuses(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no graph")
    optimized = OptimizedGraphs(tmp_path / "optimized", {bad: sha256(bad)})
    with pytest.raises(PtqdError, match="refuses the graph"):
        optimized.get(bad)
    assert [path for path in optimized.folder.rglob("*") if path.is_file()] == []
    assert optimized.find(bad) is None


def test_a_bundle_has_them_for_its_own_runtime_on_the_processor_alone(own_tiny: TinyBundle) -> None:
    bundle = Bundle.open(own_tiny.folder)
    optimized = on_onnxruntime(bundle).optimized
    assert optimized is not None
    assert on_onnxruntime(bundle, provider="CUDA").optimized is None
    graph = bundle.verified_graph("fp32")
    made = optimized.get(graph).path
    assert made.is_relative_to(own_tiny.folder / "local/optimized")
    opened = on_onnxruntime(bundle).open(graph, 1)
    feeds: dict[str, Any] = {
        "sample": np.ones((1, 1, 8, 8), dtype=np.float32),
        "timestep": np.full(1, 5, dtype=np.float32),
        "class_labels": np.zeros(1, dtype=np.int64),
    }
    np.testing.assert_array_equal(opened.run(feeds), OnnxRuntimeEngine(graph).run(feeds))
