"""Which channels a factor can be moved along, in graphs of this test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import nn

from calib.quantizers.preparation.channel_scaling import ScalableChannels
from ptqd_export.graph.reading.channel_paths import reshaped_axes
from ptqd_export.graph.reading.scalable_channels import scalable_channels

GraphOf = Callable[[str, nn.Module], ir.Model]

SIGNATURE = """
    g (float[N,5,4] sample, float[N,2,5,5] weights, float[N,5,4] other, float[4] norm_weight, float[4] norm_bias, float[4,4] q_weight_T,
       float[4,4] k_weight_T, float[4] k_bias, float[4,8] gated_weight_T, float[8] gated_bias, float[4,4,1] conv_weight)
    => (float[N,5,4] out)
    <int64[4] heads = {0, 5, 2, 2}, int64[3] merged = {0, 5, 4}, int64[3] wrong = {0, 4, 5}>
    { BODY }"""


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Module()
    network.norm = nn.LayerNorm(4)
    network.q, network.k, network.gated = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 8)
    network.conv = nn.Conv1d(4, 4, 1, bias=False)
    return network


@pytest.fixture
def find(graph_of: GraphOf) -> Callable[[str], list[ScalableChannels]]:
    def find(body: str) -> list[ScalableChannels]:
        model = graph_of(SIGNATURE.replace("BODY", body), _network())
        return scalable_channels(common.ShapeInferencePass()(model).model.graph, ["q", "k", "gated", "conv"])

    return find


NORM = "h = LayerNormalization (sample, norm_weight, norm_bias)"


def test_norm_before_the_layers_that_alone_read_it(find: Callable[[str], list[ScalableChannels]]) -> None:
    found = find(f"{NORM} a = MatMul (h, q_weight_T) b = MatMul (h, k_weight_T) bb = Add (b, k_bias) c = Add (a, bb) out = Tanh (c)")
    assert found == [ScalableChannels("norm", 0, ("k", "q"))]


def test_affine_written_as_product_and_sum(find: Callable[[str], list[ScalableChannels]]) -> None:
    found = find("m = Mul (sample, norm_weight) h = Add (m, norm_bias) a = MatMul (h, q_weight_T) out = Tanh (a)")
    assert found == [ScalableChannels("norm", 0, ("q",))]


def test_transposed_and_seen_by_a_convolution(find: Callable[[str], list[ScalableChannels]]) -> None:
    found = find(f"{NORM} t = Transpose <perm = [0, 2, 1]> (h) c = Conv (t, conv_weight) out = Transpose <perm = [0, 2, 1]> (c)")
    assert found == [ScalableChannels("norm", 0, ("conv",))]


def test_values_of_attention_through_their_heads(find: Callable[[str], list[ScalableChannels]]) -> None:
    found = find("""
        v = MatMul (sample, k_weight_T) vb = Add (v, k_bias) v4 = Reshape (vb, heads) vh = Transpose <perm = [0, 2, 1, 3]> (v4)
        mixed = MatMul (weights, vh) back = Transpose <perm = [0, 2, 1, 3]> (mixed) flat = Reshape (back, merged)
        o = MatMul (flat, q_weight_T) out = Tanh (o)""")
    assert found == [ScalableChannels("k", 0, ("q",))]


def test_values_of_attention_as_one_operator_and_not_its_queries(find: Callable[[str], list[ScalableChannels]]) -> None:
    attention = "Attention <q_num_heads = 2, kv_num_heads = 2>"
    body = f"v = MatMul (sample, k_weight_T) mixed = {attention} (INPUTS) o = MatMul (mixed, q_weight_T) out = Tanh (o)"
    assert find(body.replace("INPUTS", "other, other, v")) == [ScalableChannels("k", 0, ("q",))]
    assert find(body.replace("INPUTS", "v, other, other")) == []


def test_heads_merged_in_another_order_are_left_alone(find: Callable[[str], list[ScalableChannels]]) -> None:
    assert (
        find("""
        v = MatMul (sample, k_weight_T) v4 = Reshape (v, heads) vh = Transpose <perm = [0, 1, 3, 2]> (v4)
        flat = Reshape (vh, merged) o = MatMul (flat, q_weight_T) out = Tanh (o)""")
        == []
    )


def test_linear_half_of_a_gated_unit(find: Callable[[str], list[ScalableChannels]]) -> None:
    body = """
        p = MatMul (sample, gated_weight_T) pb = Add (p, gated_bias) left, right = Split <axis = -1, num_outputs = 2> (pb)
        gate = Sigmoid (GATE) y = Mul (KEPT, gate) o = MatMul (y, q_weight_T) out = Tanh (o)"""
    assert find(body.replace("GATE", "right").replace("KEPT", "left")) == [ScalableChannels("gated", 0, ("q",))]
    assert find(body.replace("GATE", "left").replace("KEPT", "right")) == [ScalableChannels("gated", 4, ("q",))]


@pytest.mark.parametrize(
    "body",
    [
        f"{NORM} a = MatMul (h, q_weight_T) out = Add (a, h)",  # another reader
        f"{NORM} s = Sigmoid (h) y = Mul (h, s) out = MatMul (y, q_weight_T)",  # SiLU
        f"{NORM} y = Mul (h, h) out = MatMul (y, q_weight_T)",  # a square
        f"{NORM} y = Add (h, other) out = MatMul (y, q_weight_T)",
        f"{NORM} a = MatMul (h, q_weight_T) y = Tanh (a) out = MatMul (y, q_weight_T)",  # a layer called twice
        f"{NORM} y = LayerNormalization (h, norm_weight, norm_bias) out = MatMul (y, q_weight_T)",  # a norm called twice
        f"{NORM} c = Conv (h, conv_weight) t = Reshape (c, merged) out = Tanh (t)",  # the channels are not the convolution's
        f"{NORM} y = Reshape (h, wrong) t = Transpose <perm = [0, 2, 1]> (y) out = MatMul (t, q_weight_T)",  # channels mixed with rows
        "u = Mul (sample, other) y = Add (u, other) out = MatMul (y, q_weight_T)",  # an adaptive norm: the factor is no parameter
        f"{NORM} out = Tanh (h)",
    ],
)  # fmt: skip
def test_channels_that_a_factor_cannot_pass_are_left_alone(find: Callable[[str], list[ScalableChannels]], body: str) -> None:
    assert find(body) == []


def test_relu_passes_factors(find: Callable[[str], list[ScalableChannels]]) -> None:
    found = find("p = MatMul (sample, k_weight_T) pb = Add (p, k_bias) y = Relu (pb) o = MatMul (y, q_weight_T) out = Tanh (o)")
    assert found == [ScalableChannels("k", 0, ("q",))]


def test_channels_that_no_named_layer_reads_are_left_out(graph_of: GraphOf) -> None:
    model = graph_of(SIGNATURE.replace("BODY", f"{NORM} a = MatMul (h, q_weight_T) out = Tanh (a)"), _network())
    assert scalable_channels(model.graph, ["k"]) == []


@pytest.mark.parametrize(
    ("before", "after", "axes", "expected"),
    [
        (("N", 5, 6), ("N", 5, 2, 3), (-1,), (-2, -1)),
        (("N", 5, 2, 3), ("N", 5, 6), (-2, -1), (-1,)),
        (("N", 2, 5, 3), ("N", 10, 3), (-3, -1), None),  # one of two channel axes goes into the rows
        (("N", 8, 4, 4), ("N", 8, 16), (-3,), (-2,)),
        (("N", 16, 8), ("N", 4, 4, 8), (-1,), (-1,)),
        (("N", 8, 1, 1), ("N", 8), (-3,), (-1,)),
        (("N", 6, 4), ("N", 4, 6), (-1,), None),
        (("N", 5, 2, 3), ("N", 5, 6), (-1, -2), None),  # heads behind their channels
    ],
)  # fmt: skip
def test_axes_behind_a_reshape(before: Any, after: Any, axes: Any, expected: Any) -> None:
    assert reshaped_axes(before, after, axes) == expected
