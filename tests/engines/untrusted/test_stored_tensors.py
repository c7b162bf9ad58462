"""Constants of graphs, read and replaced without `onnx`, against `onnx` itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.errors import BundleError
from engines.untrusted import stored_tensors
from engines.untrusted.stored_tensors import StoredTensors, graph_taking, outside

VALUES: dict[str, NDArray[Any]] = {
    "weight": np.arange(300, dtype=np.float32).reshape(2, 150),
    "half": np.ones((3, 1, 2), np.float16),
    "integers": np.full(200, -5, np.int8),
    "number": np.array(7, np.int64),
}
PACKED = bytes([0x21, 0x43, 0x05])


@pytest.fixture(params=["inside", "beside"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A graph with its constants inside, or the larger ones in a file beside it."""
    constants = [numpy_helper.from_array(value, name) for name, value in VALUES.items()]
    constants.append(helper.make_tensor("packed", TensorProto.INT4, [5], PACKED, raw=True))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 150])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 150])
    made = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["out"])], "graph", [x], [out], constants)
    model, path = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "graph.onnx"
    onnx.save(model, path, save_as_external_data=request.param == "beside", location="graph.onnx.data", size_threshold=100)
    return path


def test_constants_are_read_as_onnx_reads_them(graph: Path) -> None:
    found = StoredTensors(graph)
    assert found.keys() == {*VALUES, "packed"}
    for name, value in VALUES.items():
        np.testing.assert_array_equal(found[name].values(), value)
        assert found[name].values().dtype == value.dtype
    assert found["packed"].is_packed
    assert found["packed"].shape == (5,)
    with pytest.raises(ValueError, match="type 22"):
        found["packed"].values()


def test_a_graph_takes_other_constants(graph: Path) -> None:
    given = {"weight": -VALUES["weight"], "packed": np.array([0x76, 0x54, 0x03], np.uint8)}
    model = onnx.load_model_from_string(graph_taking(graph, given))
    before = {one.name: one for one in onnx.load(graph, load_external_data=False).graph.initializer}
    after = {one.name: one for one in model.graph.initializer}
    assert outside(StoredTensors(graph), given) == ["weight"]
    assert {name: one for name, one in after.items() if name not in given} == {k: v for k, v in before.items() if k not in given}
    assert after["packed"].raw_data == given["packed"].tobytes()
    assert (after["packed"].data_type, list(after["packed"].dims)) == (TensorProto.INT4, [5])
    weight = after["weight"]
    assert (weight.data_location, list(weight.dims), weight.data_type) == (TensorProto.EXTERNAL, [2, 150], TensorProto.FLOAT)
    assert {entry.key: entry.value for entry in weight.external_data} == {"location": "changed", "offset": "0", "length": "1200"}
    assert not weight.raw_data
    model.graph.ClearField("initializer")
    original = onnx.load(graph, load_external_data=False)
    original.graph.ClearField("initializer")
    assert model == original


def test_a_graph_that_would_be_too_large_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tensors, "MOST_INSIDE", 100)
    with pytest.raises(ValueError, match="at most 100 can be loaded"):
        graph_taking(graph, {})


def test_bytes_that_are_missing_are_told(tmp_path: Path) -> None:
    short = helper.make_tensor("short", TensorProto.FLOAT, [2], bytes(8), raw=True)
    short.raw_data = bytes(4)
    (tmp_path / "graph.onnx").write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[short])).SerializeToString())
    with pytest.raises(BundleError, match=r"graph.onnx: short: 2 values whose bytes are missing"):
        StoredTensors(tmp_path / "graph.onnx")["short"].values()


@pytest.mark.parametrize("offset", ["100", "-4", "abc", str(2**80)])
@pytest.mark.parametrize("location", ["weights", "missing", "a/b"])
def test_bytes_that_lie_nowhere_are_told(tmp_path: Path, offset: str, location: str) -> None:
    (tmp_path / "weights").write_bytes(bytes(16))
    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in {"location": location, "offset": offset}.items()]
    lost = onnx.TensorProto(name="lost", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL, external_data=entries)
    (tmp_path / "graph.onnx").write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[lost])).SerializeToString())
    with pytest.raises(BundleError, match=r"cannot be read(.|\n)*graph\.onnx"):
        StoredTensors(tmp_path / "graph.onnx")["lost"].values()


@pytest.mark.parametrize("content", [b"\xff" * 20, b"no graph"])
def test_a_file_that_is_no_graph_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot be read(.|\n)*graph\.onnx"):
        StoredTensors(tmp_path / "graph.onnx")
