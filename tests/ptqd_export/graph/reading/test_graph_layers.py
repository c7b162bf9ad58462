"""Which nodes are layers, what part each plays, and which of them read one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir
import pytest
from torch import nn

from calib.quantizers.rules.layers import Layer, Role
from ptqd_export.graph.reading.graph_layers import find_layers, layers_beside_the_state, weighted_nodes

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

GraphOf = Callable[[str, nn.Module], ir.Model]


def _network(**layers: nn.Module) -> nn.Module:
    network = nn.Module()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def _find(graph_of: GraphOf, text: str, network: nn.Module) -> dict[str, Layer]:
    macs = {name: 100 + i for i, name in enumerate(dict(network.named_children()))}
    layers = find_layers(graph_of(text, network).graph, macs)
    assert {layer.name: layer.macs for layer in layers} == {layer.name: macs[layer.name] for layer in layers}
    return {layer.name: layer for layer in layers}


@pytest.fixture
def unet(graph_of: GraphOf) -> dict[str, Layer]:
    """The shape of a U-Net: first and last layer, a time embedding, cross attention, a shortcut."""
    network = _network(
        **{name: nn.Conv2d(4, 4, 1) for name in ("first", "main", "shortcut", "last")}, time=nn.Linear(8, 8), proj=nn.Linear(8, 4),
        query=nn.Linear(4, 3), key=nn.Linear(6, 3), value=nn.Linear(6, 4),
    )  # fmt: skip
    text = """
        g (float[N,4,5,5] sample, float[N] timestep, float[N,7,6] tokens,
           float[4,4,1,1] first_weight, float[4] first_bias, float[4,4,1,1] main_weight, float[4] main_bias,
           float[4,4,1,1] shortcut_weight, float[4] shortcut_bias, float[4,4,1,1] last_weight, float[4] last_bias,
           float[8,8] time_weight, float[8] time_bias, float[4,8] proj_weight, float[4] proj_bias,
           float[4,3] query_weight_T, float[6,3] key_weight_T, float[6,4] value_weight_T) => (float[N,4,5,5] out)
        <int64[2] column = {-1, 1}, int64[2] eight = {-1, 8}, int64[2] plane = {2, 3}, int64[3] sequence = {0, 4, 25},
         int64[4] image = {0, 4, 5, 5}>
        {
            shape = Shape <end = 1> (sample)
            t0 = Reshape (timestep, column)
            t1 = Expand (t0, shape)
            t2 = Concat <axis = 1> (t1, t1, t1, t1, t1, t1, t1, t1)
            t3 = Reshape (t2, eight)
            t4 = Gemm <transB = 1> (t3, time_weight, time_bias)
            t5 = Gemm <transB = 1> (t4, proj_weight, proj_bias)
            t6 = Unsqueeze (t5, plane)
            h = Conv (sample, first_weight, first_bias)
            a = Conv (h, main_weight, main_bias)
            b = Add (a, t6)
            s = Conv (h, shortcut_weight, shortcut_bias)
            c = Add (b, s)
            flat = Reshape (c, sequence)
            rows = Transpose <perm = [0, 2, 1]> (flat)
            q = MatMul (rows, query_weight_T)
            k = MatMul (tokens, key_weight_T)
            v = MatMul (tokens, value_weight_T)
            kt = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul (q, kt)
            attention = Softmax (scores)
            mixed = MatMul (attention, v)
            columns = Transpose <perm = [0, 2, 1]> (mixed)
            back = Reshape (columns, image)
            d = Add (back, c)
            e = Conv (d, last_weight, last_bias)
            out = Add (e, sample)
        }"""
    return _find(graph_of, text, network)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("first", "boundary"), ("last", "boundary"), ("main", "inner"), ("shortcut", "inner"), ("query", "inner"),
        ("time", "embedding"), ("proj", "embedding"), ("key", "condition"), ("value", "condition"),
    ],
)  # fmt: skip
def test_each_layer_has_its_role(unet: dict[str, Layer], name: str, role: Role) -> None:
    assert unet[name].role == role


def test_layers_beside_the_state_are_those_of_timestep_and_conditions(graph_of: GraphOf) -> None:
    network = _network(time=nn.Linear(4, 4), key=nn.Linear(4, 4), query=nn.Linear(4, 4), both=nn.Linear(4, 4))
    text = """
        g (float[N,4] sample, float[N,4] timestep, float[N,4] tokens, float[4,4] time_weight_T, float[4,4] key_weight_T,
           float[4,4] query_weight_T, float[4,4] both_weight_T) => (float[N,4] out)
        {
            t = MatMul (timestep, time_weight_T)
            k = MatMul (tokens, key_weight_T)
            q = MatMul (sample, query_weight_T)
            mixed = Add (q, k)
            b = MatMul (mixed, both_weight_T)
            out = Add (b, t)
        }"""
    assert layers_beside_the_state(graph_of(text, network).graph) == {"time", "key"}


def test_products_of_activations_are_no_layers(unet: dict[str, Layer]) -> None:
    assert len(unet) == 9


def test_layers_are_listed_in_the_order_of_the_graph(unet: dict[str, Layer]) -> None:
    assert list(unet) == ["time", "proj", "first", "main", "shortcut", "query", "key", "value", "last"]


def test_shapes_are_torchs_also_where_the_graph_stores_the_transpose(unet: dict[str, Layer]) -> None:
    assert (unet["query"].op, unet["query"].shape) == ("MatMul", (3, 4))
    assert (unet["key"].op, unet["key"].shape) == ("MatMul", (3, 6))
    assert (unet["proj"].op, unet["proj"].shape) == ("Gemm", (4, 8))
    assert (unet["main"].op, unet["main"].shape) == ("Conv", (4, 4, 1, 1))


def test_layers_that_read_one_tensor_have_one_source(unet: dict[str, Layer]) -> None:
    assert {name: layer.source for name, layer in unet.items() if layer.source != name} == {"shortcut": "main", "value": "key"}


REPEATED = """
    g (float[N,4,5,5] sample, float[4,4,1,1] first_weight, float[4,4,1,1] again_weight, float[4,4,1,1] other_weight,
       float[4,4,1,1] last_weight) => (float[N,4,5,5] out)
    {
        a = Conv (sample, first_weight) p = Conv (a, other_weight) b = Conv (a, again_weight) c = Relu (b) q = Add (c, p)
        d = Conv (q, again_weight) e = Relu (d) out = Conv (e, last_weight)
    }"""


def _convolutions(*names: str) -> nn.Module:
    return _network(**{name: nn.Conv2d(4, 4, 1, bias=False) for name in names})


def test_layer_called_twice_is_one_layer_with_two_nodes(graph_of: GraphOf) -> None:
    network = _convolutions("first", "again", "other", "last")
    layers = _find(graph_of, REPEATED, network)
    assert list(layers) == ["first", "other", "again", "last"]
    nodes = weighted_nodes(graph_of(REPEATED, network).graph)
    assert {name: len(found) for name, found in nodes.items()} == {"first": 1, "other": 1, "again": 2, "last": 1}


def test_layer_called_on_two_tensors_is_its_own_source(graph_of: GraphOf) -> None:
    """The ranges that another layer saw would be those of one of its inputs."""
    layers = _find(graph_of, REPEATED, _convolutions("first", "again", "other", "last"))
    assert {name: layer.source for name, layer in layers.items()} == {name: name for name in layers}


def test_layer_called_inside_and_at_the_end_is_a_boundary(graph_of: GraphOf) -> None:
    text = """
        g (float[N,4,5,5] sample, float[4,4,1,1] first_weight, float[4,4,1,1] again_weight) => (float[N,4,5,5] out)
        { a = Conv (sample, first_weight) b = Conv (a, again_weight) c = Relu (b) out = Conv (c, again_weight) }"""
    assert _find(graph_of, text, _convolutions("first", "again"))["again"].role == "boundary"


def test_weights_that_are_no_parameters_of_a_layer_are_left_alone(graph_of: GraphOf) -> None:
    text = """
        g (float[N,2] sample, float[2,2] fc_weight_T) => (float[N,2] out) <float[2,2] table = {1, 2, 3, 4}>
        { a = MatMul (sample, table) out = MatMul (a, fc_weight_T) }"""
    assert list(_find(graph_of, text, _network(fc=nn.Linear(2, 2, bias=False)))) == ["fc"]


# Real networks, as traced


@pytest.fixture(params=["class_build", "cross_build"])
def built(request: pytest.FixtureRequest) -> Built:
    found: Built = request.getfixturevalue(request.param)
    return found


def test_every_layer_of_the_network_is_found_with_its_shape(built: Built) -> None:
    modules = built.context.model.adapter.network.named_modules()
    expected = {name: tuple(module.weight.shape) for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)}
    assert {layer.name: layer.shape for layer in built.network.layers} == expected


def test_first_last_and_embedding_layers_are_told_apart(built: Built) -> None:
    for layer in built.network.layers:
        if layer.name in ("conv_in", "conv_out"):
            assert layer.role == "boundary"
        elif layer.name.startswith(("time_embedding", "class_embedding")) or layer.name.endswith("time_emb_proj"):
            assert layer.role == "embedding"
        elif layer.name.endswith(("attn2.to_k", "attn2.to_v")):
            assert layer.role == "condition"
        else:
            assert layer.role == "inner", layer.name


def test_query_key_and_value_share_their_input_and_cross_attention_that_of_all_blocks(built: Built) -> None:
    sources = {layer.name: layer.source for layer in built.network.layers}
    selves = [name.removesuffix("to_q") for name in sources if name.endswith("to_q") and "attn2" not in name]
    assert selves
    for prefix in selves:
        assert sources[f"{prefix}to_k"] == sources[f"{prefix}to_v"] == f"{prefix}to_q"
    crossed = {source for name, source in sources.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(crossed) == (1 if any("attn2" in name for name in sources) else 0)
