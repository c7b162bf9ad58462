"""Which rotations weights can do, in graphs of this test's own."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from onnx_ir.passes import common
from torch import nn

from calib.quantizers.preparation.rotation import FoldedRotation
from ptqd_export.graph.reading.rotatable_channels import rotatable_channels

SIGNATURE = """
    g (float[N,5,16] sample, float[N,2,5,5] weights, float[N,5,16] other, float[16] norm_weight, float[16] norm_bias,
       float[16,16] v_weight_T, float[16] v_bias, float[16,16] out_weight_T, float[16] factor)
    => (float[N,5,16] out)
    <int64[4] heads = {0, 5, 2, 8}, int64[4] small = {0, 5, 4, 4}, int64[3] merged = {0, 5, 16}>
    { BODY }"""

VALUES = "p = MatMul (sample, v_weight_T) v = Add (p, v_bias)"
MERGED = "o = MatMul (flat, out_weight_T) out = Tanh (o)"
FOUND = [FoldedRotation("v", 0, 16, 8, ("out",))]


@pytest.fixture
def find(graph_of: Callable[[str, nn.Module], ir.Model]) -> Callable[[str], list[FoldedRotation]]:
    network = nn.Module()
    network.norm, network.v, network.out = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)

    def find(body: str) -> list[FoldedRotation]:
        model = graph_of(SIGNATURE.replace("BODY", body), network)
        return rotatable_channels(common.ShapeInferencePass()(model).model.graph, ["v", "out"])

    return find


def _attention(heads: str = "heads", inner: str = "mixed = MatMul (weights, vh)") -> str:
    return f"""
        {VALUES} v4 = Reshape (v, {heads}) vh = Transpose <perm = [0, 2, 1, 3]> (v4) {inner}
        back = Transpose <perm = [0, 2, 1, 3]> (mixed) flat = Reshape (back, merged) {MERGED}"""


def test_values_of_attention_are_rotated_within_their_heads(find: Callable[[str], list[FoldedRotation]]) -> None:
    assert find(_attention()) == FOUND
    operator = f"{VALUES} flat = Attention <q_num_heads = 2, kv_num_heads = 2> (other, other, v) {MERGED}"
    assert find(operator) == FOUND


def test_channels_that_meet_nothing_are_rotated_as_a_whole(find: Callable[[str], list[FoldedRotation]]) -> None:
    assert find(f"{VALUES} flat = Identity (v) {MERGED}") == [FoldedRotation("v", 0, 16, 16, ("out",))]


@pytest.mark.parametrize(
    "body",
    [
        _attention("small"),  # heads of 4 channels
        _attention(inner="mixed = Relu (vh)"),
        _attention(inner="mixed = MatMul (vh, vh)"),  # keys or queries
        f"{VALUES} flat = Mul (v, factor) {MERGED}",  # a modulation
        f"{VALUES} flat = Tanh (v) {MERGED}",
        f"{VALUES} flat = Add (v, other) {MERGED}",  # a residual
        f"{VALUES} v4 = Reshape (v, heads) t = Transpose <perm = [0, 3, 2, 1]> (v4) m = MatMul (t, t) out = Tanh (m)",
        f"flat = LayerNormalization (sample, norm_weight, norm_bias) {MERGED}",  # a norm is no layer
    ],
)  # fmt: skip
def test_what_is_elementwise_stops_a_rotation(find: Callable[[str], list[FoldedRotation]], body: str) -> None:
    assert find(body) == []
