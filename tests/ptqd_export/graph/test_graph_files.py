"""Graphs as files, with and without their weights beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.openvino.openvino_backend import OpenVinoBackend
from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_builder import build_engine
from engines.errors import PtqdError
from engines.untrusted import external_data
from engines.untrusted.stored_tensors import StoredTensors
from ptqd_export.graph import graph_files
from ptqd_export.graph.graph_files import save_graph, save_sharing, save_with_data

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    Parse = Callable[[str], ir.Model]

WEIGHT = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
X = np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32)


@pytest.fixture
def model(parse_graph: Parse) -> ir.Model:
    model = parse_graph("g (float[N,64] sample, float[64,64] w) => (float[N,64] out) { out = MatMul (sample, w) }")
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(WEIGHT)
    model.graph.register_initializer(weight)
    return model


def _run(path: Path) -> Array:
    return OnnxRuntimeEngine(path, threads=1).run({"sample": X})


def test_small_graph_is_one_file(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_graph(model, path)
    assert external_data.graph_files(path) == [path]
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    np.testing.assert_allclose(_run(path), X @ WEIGHT, atol=1e-5)


@pytest.mark.parametrize(("limit", "files"), [(WEIGHT.nbytes, ["m.onnx"]), (WEIGHT.nbytes - 1, ["m.onnx", "m.onnx.data"])])
def test_weights_beyond_the_limit_lie_beside_the_graph(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, files: list[str]
) -> None:
    monkeypatch.setattr(graph_files, "EXTERNAL_DATA_BYTES", limit)
    save_graph(model, tmp_path / "m.onnx")
    assert [file.name for file in external_data.graph_files(tmp_path / "m.onnx")] == files
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    np.testing.assert_allclose(_run(tmp_path / "m.onnx"), X @ WEIGHT, atol=1e-5)


@pytest.fixture
def in_shards(parse_graph: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph with three weights, of which two fit in a shard."""
    monkeypatch.setattr(graph_files, "SHARD_BYTES", 2 * WEIGHT.nbytes + 100)
    graph = parse_graph("""g (float[N,64] sample, float[64,64] a, float[64,64] b, float[64,64] c) => (float[N,64] out)
        { x = MatMul (sample, a)
          y = MatMul (x, b)
          out = MatMul (y, c) }""")
    for number, value in enumerate(graph.graph.inputs[1:], start=1):
        graph.graph.inputs.remove(value)
        value.const_value = ir.tensor(WEIGHT / np.float32(8 * number))
        graph.graph.register_initializer(value)
    save_with_data(graph, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


SHARDS = ["m-00001-of-00002.onnx.data", "m-00002-of-00002.onnx.data"]


def test_weights_beyond_a_shard_lie_in_several_files_that_are_the_graph_s_own(in_shards: Path) -> None:
    assert [file.name for file in external_data.graph_files(in_shards)] == ["m.onnx", *SHARDS]
    assert [in_shards.with_name(name).stat().st_size for name in SHARDS] == [2 * WEIGHT.nbytes, WEIGHT.nbytes]
    assert {external_data.graph_of(name) for name in (*SHARDS, "m.onnx.data")} == {"m.onnx"}
    assert [external_data.is_weights_of(SHARDS[0], graph) for graph in ("m.onnx", "n.onnx", "m")] == [True, False, False]
    onnx.checker.check_model(str(in_shards), full_check=True)
    np.testing.assert_allclose(_run(in_shards), X @ WEIGHT @ WEIGHT @ WEIGHT / (6 * 8**3), rtol=1e-4, atol=1e-4)


def test_another_graph_of_the_same_name_replaces_all_shards(in_shards: Path, model: ir.Model) -> None:
    for _ in range(2):
        save_with_data(model, in_shards)
        assert sorted(file.name for file in in_shards.parent.iterdir()) == ["m.onnx", "m.onnx.data"]
        np.testing.assert_allclose(_run(in_shards), X @ WEIGHT, atol=1e-5)


def test_graphs_and_constants_are_read_from_shards(in_shards: Path) -> None:
    graph = ir.load(in_shards)
    graph.graph.initializers["b"].const_value = ir.tensor(WEIGHT)
    save_sharing(graph, in_shards.with_name("n.onnx"), in_shards)
    assert external_data.external_tensors(in_shards.with_name("n.onnx")) == {"a", "c"}
    expected = X @ WEIGHT @ WEIGHT @ WEIGHT / (3 * 8**2)
    np.testing.assert_allclose(_run(in_shards.with_name("n.onnx")), expected, rtol=1e-4, atol=1e-3)
    assert [np.array_equal(StoredTensors(in_shards)[name].values(), WEIGHT / np.float32(8 * n)) for n, name in enumerate("abc", 1)] == [
        True
    ] * 3
    changed = OnnxRuntimeEngine(in_shards, threads=1, constants={"b": WEIGHT})
    np.testing.assert_allclose(changed.run({"sample": X}), expected, rtol=1e-4, atol=1e-3)


def test_openvino_reads_shards(in_shards: Path) -> None:
    pytest.importorskip("openvino")
    network = OpenVinoBackend(threads=1).open(in_shards, len(X))
    np.testing.assert_allclose(network.run({"sample": X}), X @ WEIGHT @ WEIGHT @ WEIGHT / (6 * 8**3), rtol=1e-4, atol=1e-4)


def test_tensorrt_reads_shards(in_shards: Path, tmp_path: Path) -> None:
    """A weight of another shard, or none, would be refused: the parser reads all of them."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    spec = BuildSpec(in_shards, "tensorrt-rtx", BatchProfile(1, 2, 4), compute_capabilities=("SM89",))
    build_engine(spec, tmp_path / "engine")
    assert (tmp_path / "engine").stat().st_size > 3 * WEIGHT.nbytes
    in_shards.with_name(SHARDS[1]).unlink()
    with pytest.raises(PtqdError, match="refuses the graph"):
        build_engine(spec, tmp_path / "engine")


def test_a_graph_shares_equal_weights_and_holds_its_own(model: ir.Model, parse_graph: Parse, tmp_path: Path) -> None:
    save_with_data(model, tmp_path / "m.onnx")
    text = """g (float[N,64] sample, float[64,64] w, float[64,64] v) => (float[N,64] out)
        { a = MatMul (sample, w)
          out = MatMul (a, v) }"""
    other = parse_graph(text)
    for name, values in {"v": 2 * WEIGHT, "w": WEIGHT}.items():
        value = next(value for value in other.graph.inputs if value.name == name)
        other.graph.inputs.remove(value)
        value.const_value = ir.tensor(values)
        other.graph.register_initializer(value)
    save_sharing(other, tmp_path / "n.onnx", tmp_path / "m.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "n.onnx"]
    own, shared = (onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph.initializer for name in "nm")
    stored = {tensor.name: tensor for tensor in own}
    assert stored["w"].external_data == shared[0].external_data
    assert stored["v"].raw_data == (2 * WEIGHT).tobytes()
    np.testing.assert_allclose(_run(tmp_path / "n.onnx"), X @ WEIGHT @ (2 * WEIGHT), rtol=1e-4, atol=1e-3)


def test_a_weight_of_the_same_name_with_other_values_is_not_shared(model: ir.Model, tmp_path: Path) -> None:
    save_with_data(model, tmp_path / "m.onnx")
    changed = ir.load(tmp_path / "m.onnx")
    changed.graph.initializers["w"].const_value = ir.tensor(WEIGHT + np.float32(1))
    save_sharing(changed, tmp_path / "n.onnx", tmp_path / "m.onnx")
    assert external_data.external_files(tmp_path / "n.onnx") == set()
    np.testing.assert_allclose(_run(tmp_path / "n.onnx"), X @ (WEIGHT + 1), atol=1e-4)


def test_graph_with_weights_beside_it_can_move_and_be_saved_again(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_files, "EXTERNAL_DATA_BYTES", 1000)
    save_graph(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in external_data.graph_files(tmp_path / "m.onnx"):
        file.rename(elsewhere / file.name)
    onnx.checker.check_model(str(elsewhere / "m.onnx"), full_check=True)
    np.testing.assert_allclose(_run(elsewhere / "m.onnx"), X @ WEIGHT, atol=1e-5)
    save_graph(ir.load(elsewhere / "m.onnx"), tmp_path / "again.onnx")
    assert [file.name for file in external_data.graph_files(tmp_path / "again.onnx")] == ["again.onnx", "again.onnx.data"]
    np.testing.assert_allclose(_run(tmp_path / "again.onnx"), X @ WEIGHT, atol=1e-5)


def test_small_graph_made_from_a_large_one_holds_its_weights(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_files, "EXTERNAL_DATA_BYTES", WEIGHT.nbytes - 1)
    save_graph(model, tmp_path / "large.onnx")
    monkeypatch.setattr(graph_files, "EXTERNAL_DATA_BYTES", WEIGHT.nbytes)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_graph(ir.load(tmp_path / "large.onnx"), elsewhere / "small.onnx")
    assert [file.name for file in elsewhere.iterdir()] == ["small.onnx"]
    np.testing.assert_allclose(_run(elsewhere / "small.onnx"), X @ WEIGHT, atol=1e-5)
