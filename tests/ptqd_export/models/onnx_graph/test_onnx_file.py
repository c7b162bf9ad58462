"""Graphs as untrusted files, and everything that old and odd exporters write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.reading.folded import folded
from ptqd_export.models.onnx_graph.reading.onnx_file import onnx_files, read_interface, read_onnx
from tests.ptqd_export.models.onnx_graph.onnx_graphs import Interface, graph_file, node, random
from tests.ptqd_export.models.onnx_graph.test_graph_module import module_of

X: dict[str, Interface] = {"x": ("FLOAT", ["batch", 4])}


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        folded(read_onnx(path), "out")
    return str(caught.value)


def test_weights_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", [node("MatMul", ["x", "w"], "out")], X, {"w": random(4, 3)}, as_inputs=["w"])
    assert [one.name for one in read_interface(path)[0]] == ["x"]
    assert module_of(path)(torch.ones(2, 4)).shape == (2, 3)


def test_constants_may_be_nodes_and_lists(tmp_path: Path) -> None:
    weight = random(4, 3)
    nodes = [
        node("Constant", [], "w", value=numpy_helper.from_array(weight)),
        node("Constant", [], "shape", value_ints=[-1, 3, 1]),
        node("Constant", [], "half", value_float=0.5),
        node("MatMul", ["x", "w"], "y"),
        node("Mul", ["y", "half"], "z"),
        node("Reshape", ["z", "shape"], "out"),
    ]
    x = random(2, 4)
    found = module_of(graph_file(tmp_path / "g.onnx", nodes, X))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, (x @ weight / 2)[:, :, None], rtol=1e-6)


def test_weights_of_16_bits_are_read_as_float32(tmp_path: Path) -> None:
    weight = random(4, 3).astype(np.float16)
    nodes = [node("Cast", "x", "h", to=10), node("MatMul", ["h", "w"], "y"), node("Cast", "y", "out", to=1)]
    path = graph_file(tmp_path / "g.onnx", nodes, X, {"w": weight})
    x = random(2, 4)
    assert read_onnx(path).half
    np.testing.assert_allclose(module_of(path)(torch.from_numpy(x)).numpy(), x @ weight.astype(np.float32), rtol=1e-6)


def test_functions_of_the_graph_are_part_of_it(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", [node("Doubled", "x", "out", "own")], X)
    model = onnx.load(path)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("own", "Doubled", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    onnx.save(model, path)
    assert module_of(path)(torch.ones(2, 4)).tolist() == [[2.0] * 4] * 2


def test_weights_may_lie_beside_the_graph_and_nowhere_else(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", [node("MatMul", ["x", "w"], "out")], X, {"w": random(64, 64)})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="g.data", size_threshold=0)
    assert [file.name for file in onnx_files(path)] == ["g.onnx", "g.data"]
    assert module_of(path)(torch.ones(2, 64)).shape == (2, 64)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64 * 64 * 4))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "g.onnx").write_bytes(path.read_bytes().replace(b"g.data", b"../sec"))
    assert "weights are not beside it" in refusal(inner / "g.onnx")
    (tmp_path / "g.data").unlink()
    assert "'g.data'" in refusal(path)


def test_every_unsupported_operator_is_named_at_once(tmp_path: Path) -> None:
    nodes = [
        node("RandomNormalLike", "x", "a"),
        node("Custom", "a", "b", "company"),
        node("QuantizeLinear", ["b", "s", "z"], "c"),
        node("DequantizeLinear", ["c", "s", "z"], "out"),
        node("Unique", "x", ["dead"]),
    ]
    message = refusal(graph_file(tmp_path / "g.onnx", nodes, X, {"s": np.float32(1), "z": np.int8(0)}))
    assert "found:    QuantizeLinear, RandomNormalLike, company.Custom; random operators" in message
    assert "quantized already" in message
    assert "Unique" not in message


def test_control_flow_is_refused_by_name(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Identity", "x", "y")], "b", [], [helper.make_tensor_value_info("y", 1, None)])
    nodes = [node("If", "c", "out", then_branch=branch, else_branch=branch)]
    assert "If; control flow" in refusal(graph_file(tmp_path / "g.onnx", nodes, {**X, "c": ("BOOL", [])}))


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "The graph is missing"), (b"no graph", "The graph cannot be read"), (b"\x0a\xff\xff", "The graph cannot be read")],
)
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "g.onnx"
    if content:
        path.write_bytes(content)
    assert found in refusal(path)


def test_operators_of_the_first_versions_are_refused(tmp_path: Path) -> None:
    assert "opset 6" in refusal(graph_file(tmp_path / "g.onnx", [node("Relu", "x", "out")], X, opset=6))


def test_constants_that_do_not_fit_are_refused_with_their_node(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["a", "b"], "c"), node("Add", ["x", "c"], "out")]
    nodes[0].name = "/broken/MatMul"
    assert "found:    /broken/MatMul (MatMul)" in refusal(graph_file(tmp_path / "g.onnx", nodes, X, {"a": random(2, 3), "b": random(2, 3)}))
