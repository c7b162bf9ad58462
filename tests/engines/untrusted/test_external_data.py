"""Which files a graph reads, held against the `onnx` package: its descriptor, and graphs that it writes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from engines.untrusted.external_data import MESSAGES, TENSOR, external_files


def test_every_field_that_leads_to_a_tensor_is_followed() -> None:
    messages = ModelProto.DESCRIPTOR.file.message_types_by_name
    leading = {TENSOR}
    while found := {
        name
        for name, message in messages.items()
        if name not in leading and any(field.message_type and field.message_type.name in leading for field in message.fields)
    }:
        leading |= found
    expected: dict[str, dict[int, str]] = {}
    waiting = ["ModelProto"]
    while waiting:
        name = waiting.pop()
        if name not in expected and name != TENSOR:
            fields = [field for field in messages[name].fields if field.message_type and field.message_type.name in leading]
            expected[name] = {field.number: field.message_type.name for field in fields}
            waiting += expected[name].values()
    assert {name: fields for name, fields in MESSAGES.items() if name != TENSOR} == expected
    assert [field.number for field in messages[TENSOR].fields if field.name == "external_data"] == list(MESSAGES[TENSOR])


def tensor(location: str) -> TensorProto:
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    return made


def saved(path: Path, graph: onnx.GraphProto) -> Path:
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_locations_are_found_in_weights_attributes_and_graphs_within(tmp_path: Path) -> None:
    innermost = helper.make_graph([], "c", [], [], [tensor("three")])
    inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=innermost)], "b", [], [])
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor("two")), helper.make_node("If", ["x"], ["y"], else_branch=inner)]
    sparse = helper.make_sparse_tensor(tensor("four"), tensor("five"), [4])
    graph = helper.make_graph(nodes, "a", [], [], [tensor("one")], sparse_initializer=[sparse])
    assert external_files(saved(tmp_path / "g.onnx", graph)) == {"one", "two", "three", "four", "five"}


def test_a_graph_that_holds_its_weights_reads_nothing(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    assert external_files(saved(tmp_path / "g.onnx", helper.make_graph([], "a", [], [], [weights]))) == set()


@pytest.mark.parametrize(
    "content", [b"\x0b", b"\x3a\x7f", b"\xff" * 11, b"\x3a", b"\x09\x00"], ids=["group", "length", "number", "end", "eight bytes"]
)
def test_what_is_no_protocol_buffer_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"field|varint"):
        external_files(tmp_path / "g.onnx")


def test_graphs_without_end_are_an_error(tmp_path: Path) -> None:
    graph = helper.make_graph([], "a", [], [], [tensor("one")])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "a", [], [])
    with pytest.raises(ValueError, match="nested"):
        external_files(saved(tmp_path / "g.onnx", graph))
