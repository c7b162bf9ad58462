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
from engines.untrusted import external_data
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
