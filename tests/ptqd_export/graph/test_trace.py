"""Tracing: what is promised of every graph, on two diffusers networks and on a module made to be difficult."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.rules.placement import PLACEMENTS
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.errors import PtqdError
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.reading.graph_layers import weighted_nodes
from ptqd_export.graph.trace import check_outputs, check_parity, lower, trace, trace_module
from ptqd_export.models.base import LoadedModel

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.fixture(params=["class_build", "cross_build"])
def built(request: pytest.FixtureRequest) -> Built:
    found: Built = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def graph(built: Built) -> onnx.GraphProto:
    return onnx.load(built.stage("trace") / "fp32.onnx").graph


def test_inputs_and_output_are_named_and_their_batch_is_free(built: Built, graph: onnx.GraphProto) -> None:
    conditions = {"UNet2DModel": "class_labels", "UNet2DConditionModel": "encoder_hidden_states"}
    family = built.context.model.family.removeprefix("diffusers ")
    assert [value.name for value in graph.input] == ["sample", "timestep", conditions[family]]
    assert [value.name for value in graph.output] == ["out"]
    for value in (*graph.input, *graph.output):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in others)


@pytest.mark.parametrize("batch", [1, 3, 64, 70])
def test_graph_computes_what_torch_computes_at_any_batch(built: Built, batch: int) -> None:
    model = built.context.model
    inputs = model.example_inputs(batch)
    names = ("sample", "timestep", *model.adapter.conditions)
    found = OnnxRuntimeEngine(built.stage("trace") / "fp32.onnx", threads=1).run(
        {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    )
    with torch.no_grad():
        expected = model.adapter(*inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_initializers_are_parameters_by_name_with_their_values(built: Built, graph: onnx.GraphProto) -> None:
    state = built.context.model.adapter.network.state_dict()
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = [name for name in state if name.removesuffix(".weight") in {layer.name for layer in built.network.layers}]
    assert len(layers) > 30
    for name in layers:
        value = stored[name] if name in stored else stored[f"{name}.T"].T
        np.testing.assert_array_equal(value, state[name].numpy())


def test_nothing_of_where_it_was_traced_is_left_in_the_file(built: Built) -> None:
    def messages(message: Any) -> Iterator[Any]:
        yield message
        for field, value in message.ListFields():
            for part in value if field.is_repeated else [value]:
                if field.message_type is not None:
                    yield from messages(part)

    model = onnx.load(built.stage("trace") / "fp32.onnx")
    found = [message for message in messages(model) if getattr(message, "metadata_props", None) or getattr(message, "doc_string", None)]
    assert found == []
    assert str(Path(__file__).parents[3]).encode() not in model.SerializeToString()


def test_group_norms_are_lowered_as_the_placement_says(graph: onnx.GraphProto) -> None:
    ops = {node.op_type for node in graph.node}
    assert "InstanceNormalization" in ops
    assert "GroupNormalization" not in ops


def test_attention_is_lowered_as_the_placement_says(graph: onnx.GraphProto) -> None:
    ops = {node.op_type for node in graph.node}
    assert "Attention" in ops
    assert "Softmax" not in ops


def test_every_initializer_is_read(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read


class Difficult(nn.Module):
    """Two layers with equal weights that read one tensor, one called twice, and group norms of ranks 4 and 3 with equal parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 1)
        self.plane_norm = nn.GroupNorm(2, 8)
        self.sequence_norm = nn.GroupNorm(4, 8)
        self.twice = nn.Linear(8, 8)
        self.conv_out = nn.Conv2d(8, 2, 3, padding=1)
        nn.init.zeros_(self.left.weight)
        nn.init.zeros_(self.right.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        h = self.plane_norm(h + self.left(h) + self.right(h))
        sequence = self.sequence_norm(h.flatten(2)).mT
        sequence = self.twice(torch.relu(self.twice(sequence)))
        out: Tensor = self.conv_out(sequence.mT.reshape(h.shape))
        return out


@pytest.fixture(scope="module")
def difficult(as_model: Callable[[nn.Module, tuple[int, ...]], LoadedModel]) -> tuple[LoadedModel, ir.Model]:
    torch.manual_seed(0)
    model = as_model(Difficult(), (2, 4, 4))
    return model, trace(model)


def test_layers_with_equal_weights_stay_two_layers(difficult: tuple[LoadedModel, ir.Model]) -> None:
    nodes = weighted_nodes(difficult[1].graph)
    assert {name: len(found) for name, found in nodes.items()} == {"conv_in": 1, "left": 1, "right": 1, "twice": 2, "conv_out": 1}


@pytest.mark.parametrize("form", ["operator", "instance"])
def test_difficult_module_is_traced_and_lowered(difficult: tuple[LoadedModel, ir.Model], tmp_path: Path, form: Any) -> None:
    model, traced = difficult
    graph = traced.clone()
    lower(graph, replace(PLACEMENTS["onnxruntime"], group_norm=form))
    ops = [node.op_type for node in graph.graph]
    assert (ops.count("GroupNormalization"), ops.count("InstanceNormalization")) == ((2, 0) if form == "operator" else (0, 2))
    save_graph(graph, tmp_path / "m.onnx")
    assert check_parity(model, tmp_path / "m.onnx") < 1e-5


def test_graph_of_other_weights_is_refused(difficult: tuple[LoadedModel, ir.Model], tmp_path: Path) -> None:
    model, traced = difficult
    graph = traced.clone()
    bias = graph.graph.initializers["conv_out.bias"]
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.01))
    save_graph(graph, tmp_path / "m.onnx")
    with pytest.raises(PtqdError, match="does not compute what torch computes") as error:
        check_parity(model, tmp_path / "m.onnx")
    assert "at most 1e-04" in str(error.value)


def test_tiny_addend_still_keeps_a_division_from_zero_by_zero(tmp_path: Path) -> None:
    class Share(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = torch.relu(x)
            return kept / (kept.sum(1, keepdim=True) + 1e-15)

    x = torch.tensor([[-1.0, -2.0], [1.0, 3.0]])
    ir.save(trace_module(Share(), {"sample": x}), tmp_path / "share.onnx")
    found = OnnxRuntimeEngine(tmp_path / "share.onnx").run({"sample": x.numpy()})
    np.testing.assert_allclose(found, np.array([[0.0, 0.0], [0.25, 0.75]]), rtol=1e-6)


def test_torch_output_that_is_not_finite_is_no_fault_of_the_graph() -> None:
    with pytest.raises(PtqdError, match=r"(?s)The model does not compute finite values.*fp32.onnx"):
        check_outputs(np.ones(2, np.float32), np.array([1, np.nan], np.float32), "fp32.onnx")
