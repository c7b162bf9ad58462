"""Which layers read a concatenation, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.preparation.split_layer import split_layers
from calib.quantizers.rules.placement import PLACEMENTS
from ptqd_export.graph.passes.split_concatenations import SplitConcatenations, concatenated_inputs
from ptqd_export.graph.reading.graph_layers import find_layers, weighted_nodes
from ptqd_export.graph.trace import lower

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    GraphOf = Callable[[str, nn.Module], ir.Model]
    Run = Callable[..., Array]


class Block(nn.Module):
    """A U-Net's up block: `conv` and `again` read SiLU(norm(concatenation)), `shortcut` the concatenation itself, `head` its rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(2, 6)
        self.conv, self.again = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1, bias=False)
        self.shortcut, self.plain = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(6, 3)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        both = torch.cat([x, skip], dim=1)
        h = nn.functional.silu(self.norm(both))
        h = self.plain(self.conv(h) + self.again(h) + self.shortcut(both))
        rows = self.head(torch.cat([x.flatten(2).mT, skip.flatten(2).mT], dim=-1))
        out: Tensor = h.flatten(2) + rows.mean(2)[:, None]
        return out

    text = """
        g (float[N,4,5,5] sample, float[N,2,5,5] skip, float[6] norm_weight, float[6] norm_bias,
           float[4,6,3,3] conv_weight, float[4] conv_bias, float[4,6,1,1] again_weight, float[4,6,1,1] shortcut_weight,
           float[4] shortcut_bias, float[4,4,1,1] plain_weight, float[4] plain_bias, float[6,3] head_weight_T, float[3] head_bias)
        => (float[N,4,25] out)
        <float[N,6,5,5] both, float[N,6,5,5] normal, float[N,6,5,5] gate, float[N,6,5,5] h, float[N,25,6] rows,
         int64[3] flat_x = {0, 4, 25}, int64[3] flat_skip = {0, 2, 25}, int64[1] last = {2}, int64[1] one = {1}>
        {
            both = Concat <axis = 1> (sample, skip)
            normal = GroupNormalization <num_groups = 2> (both, norm_weight, norm_bias)
            gate = Sigmoid (normal)
            h = Mul (normal, gate)
            a = Conv <pads = [1, 1, 1, 1]> (h, conv_weight, conv_bias)
            b = Conv (h, again_weight)
            ab = Add (a, b)
            s = Conv (both, shortcut_weight, shortcut_bias)
            abs = Add (ab, s)
            p = Conv (abs, plain_weight, plain_bias)
            x3 = Reshape (sample, flat_x)
            xr = Transpose <perm = [0, 2, 1]> (x3)
            s3 = Reshape (skip, flat_skip)
            sr = Transpose <perm = [0, 2, 1]> (s3)
            rows = Concat <axis = -1> (xr, sr)
            m = MatMul (rows, head_weight_T)
            mb = Add (m, head_bias)
            mean = ReduceMean <keepdims = 0> (mb, last)
            column = Unsqueeze (mean, one)
            flat = Reshape (p, flat_x)
            out = Add (flat, column)
        }"""


PARTS = {"conv": (4, 2), "again": (4, 2), "shortcut": (4, 2), "head": (4, 2)}


def _block(graph_of: GraphOf) -> ir.Model:
    """The shapes that the tracer would have inferred are filled in."""
    model = graph_of(Block.text, Block())
    plane, rows = (5, 5), (25,)
    shapes = {"both": (6, *plane), "h": (6, *plane), "normal": (6, *plane), "xr": (*rows, 4), "sr": (*rows, 2), "rows": (*rows, 6)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in shapes:
                value.shape = ir.Shape(["N", *shapes[value.name]])
                value.type = ir.TensorType(ir.DataType.FLOAT)
    return model


@pytest.fixture
def block(graph_of: GraphOf) -> ir.Model:
    return _block(graph_of)


@pytest.mark.parametrize("form", ["operator", "instance"])
def test_concatenations_are_seen_through_norm_and_silu(block: ir.Model, form: Literal["operator", "instance"]) -> None:
    lower(block, replace(PLACEMENTS["onnxruntime"], group_norm=form))
    assert concatenated_inputs(block.graph, list(weighted_nodes(block.graph))) == PARTS
    assert concatenated_inputs(block.graph, ["conv", "plain"]) == {"conv": (4, 2)}


def _unsplit(graph_of: GraphOf, body: str, shape: str = "4,6,1,1") -> None:
    size = [int(size) for size in shape.split(",")]
    network = nn.Module()
    network.fc = nn.Conv2d(6, 4, 1)
    network.fc.weight = nn.Parameter(torch.zeros(size))
    text = f"""
        g (float[N,3,6,6] sample, float[N,3,6,6] skip, float[N,6,6,6] other, float[{shape}] fc_weight) => (float[N,4,6,6] out)
        {{ {body} }}"""
    model = graph_of(text, network)
    for node in model.graph:
        if node.op_type == "Concat":
            node.outputs[0].shape = ir.Shape(["N", 6, 6, 6])
    assert concatenated_inputs(model.graph, ["fc"]) == {}


@pytest.mark.parametrize(
    "body",
    [
        "a = Concat <axis = 1> (sample, skip) b = Add (a, other) out = Conv (b, fc_weight)",  # a sum has no parts
        "a = Concat <axis = 1> (sample, skip) b = Concat <axis = 1> (skip, sample) c = Add (a, b) out = Conv (c, fc_weight)",
        "a = Concat <axis = 2> (sample, skip) out = Conv (a, fc_weight)",
        "a = Concat <axis = 1> (sample, skip) b = Conv (a, fc_weight) c = Sigmoid (b) out = Conv (c, fc_weight)",  # called on two inputs
        "out = Conv (other, fc_weight)",
    ],
)
def test_other_inputs_are_left_whole(graph_of: GraphOf, body: str) -> None:
    _unsplit(graph_of, body)


def test_grouped_convolutions_are_left_whole(graph_of: GraphOf) -> None:
    _unsplit(graph_of, "a = Concat <axis = 1> (sample, skip) out = Conv <group = 2> (a, fc_weight)", "4,3,1,1")


def test_split_graph_computes_the_same_as_before_and_as_the_split_network(graph_of: GraphOf, block: ir.Model, run_graph: Run) -> None:
    generator = torch.Generator().manual_seed(1)
    x, skip = torch.randn(3, 4, 5, 5, generator=generator), torch.randn(3, 2, 5, 5, generator=generator)
    feeds = {"sample": x.numpy(), "skip": skip.numpy()}
    before = run_graph(_block(graph_of), feeds)
    assert SplitConcatenations(PARTS)(block).modified
    ir.passes.common.RemoveUnusedNodesPass()(block)
    network = Block()
    with torch.no_grad():
        whole = network(x, skip).numpy()
        split_layers(network, PARTS)
        split = network(x, skip).numpy()
    np.testing.assert_allclose(before, whole, rtol=1e-4, atol=1e-5)
    for found in (run_graph(block, feeds), split):
        np.testing.assert_allclose(found, before, rtol=1e-4, atol=1e-5)


def test_parts_are_layers_with_the_parameters_of_the_split_network(block: ir.Model) -> None:
    SplitConcatenations(PARTS)(block)
    ir.passes.common.RemoveUnusedNodesPass()(block)
    network = Block()
    split_layers(network, PARTS)
    layers = find_layers(block.graph, dict.fromkeys(dict(network.named_modules()), 1))
    parts = {f"{name}.parts.{i}" for name in PARTS for i in range(2)}
    assert {layer.name for layer in layers} == {*parts, "plain"}
    state = network.state_dict()
    for layer in layers:
        assert layer.shape == tuple(state[f"{layer.name}.weight"].shape)
    stored = {name.removesuffix(".T"): value for name, value in block.graph.initializers.items()}
    for name in state.keys() - {"norm.weight", "norm.bias"}:
        tensor = stored[name].const_value
        assert tensor is not None
        value = tensor.numpy()
        np.testing.assert_array_equal(value.T if name.startswith("head") and value.ndim == 2 else value, state[name].numpy())


def test_layers_of_one_input_share_its_pieces_and_those_of_a_bare_concatenation_read_its_parts(block: ir.Model) -> None:
    SplitConcatenations(PARTS)(block)
    nodes = {name: found[0] for name, found in weighted_nodes(block.graph).items()}
    (split,) = (node for node in block.graph if node.op_type == "Split")
    for i in range(2):
        assert nodes[f"conv.parts.{i}"].inputs[0] is nodes[f"again.parts.{i}"].inputs[0] is split.outputs[i]
    assert [str(nodes[f"shortcut.parts.{i}"].inputs[0].name) for i in range(2)] == ["sample", "skip"]  # type: ignore[union-attr]  # no input is left out
    sources = {layer.name: layer.source for layer in find_layers(block.graph, dict.fromkeys(nodes, 1))}
    assert sources["again.parts.1"] == "conv.parts.1"


def test_nothing_to_split_changes_nothing(block: ir.Model) -> None:
    before = [node.op_type for node in block.graph]
    assert not SplitConcatenations({})(block).modified
    assert [node.op_type for node in block.graph] == before
