"""Attention from its two products, held against PyTorch's own function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from calib.quantizers.attention.attention_call import AttentionCall, AttentionCalls
from calib.quantizers.attention.quantized_attention import QuantizedAttention, fake_attention, weights_quantizer
from calib.quantizers.quantizers import ActivationQuantizer, Float8ActivationQuantizer


def inputs(queries: int = 5, keys: int = 5, key_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, queries, 8), (2, key_heads, keys, 8), (2, key_heads, keys, 8))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("heads", "options"),
    [
        (4, {}),
        (4, {"scale": 0.3}),
        (4, {"is_causal": True}),
        (2, {"enable_gqa": True}),
        (4, {"attn_mask": torch.linspace(-2, 2, 25).reshape(5, 5)}),
        (4, {"attn_mask": torch.arange(25).reshape(5, 5) % 3 > 0}),
    ],
)
def test_products_compute_what_pytorch_computes(heads: int, options: dict[str, Any]) -> None:
    arguments = inputs(key_heads=heads)
    expected = scaled_dot_product_attention(*arguments, **options)
    found = AttentionCall(*arguments, **options).output(same, same, same, same)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_cost_of_the_products_is_what_pytorch_counts() -> None:
    query, key, value = (x[:1] for x in inputs(queries=7, keys=3))
    with FlopCounterMode(display=False) as counter:
        query @ key.transpose(-2, -1) @ value
    assert AttentionCall(query, key, value).macs == counter.get_total_flops() // 2


def test_calls_are_numbered_and_may_be_left_to_pytorch() -> None:
    arguments, seen = inputs(), []

    def computed(number: int, call: AttentionCall) -> Tensor | None:
        seen.append((number, call.scale))
        return torch.zeros_like(call.query) if number == 1 else None

    with AttentionCalls(computed) as calls:
        outs = [scaled_dot_product_attention(*arguments, scale=scale) for scale in (0.5, 1.0, None)]
    assert seen == [(0, 0.5), (1, 1.0), (2, None)]
    assert calls.count == 3
    assert [bool(out.any()) for out in outs] == [True, False, True]


@pytest.mark.parametrize(("form", "steps"), [("integer", 127), ("e4m3", 448)])
def test_softmax_has_a_fixed_scale_that_holds_0_and_1(form: Any, steps: int) -> None:
    quantizer = weights_quantizer(form)
    assert quantizer.scale == pytest.approx(1 / steps)
    assert quantizer.fake(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0, 1], rel=1e-6)
    assert quantizer.zero_point == 0


@pytest.mark.parametrize("form", ["integer", "e4m3"])
def test_every_input_of_the_products_is_quantized_and_only_in_the_given_calls(form: Any) -> None:
    """Written out: 8-bit queries, keys, values and weights, one after the other."""
    arguments = inputs()
    query, key, value = (_quantizer(form, float(x.abs().max())) for x in arguments)
    one = QuantizedAttention(1, "block.attn", query, key, value, weights_quantizer(form))
    root = 8**-0.25
    q, k, v = arguments
    weights = (query.fake(q * root) @ key.fake(k * root).mT).softmax(-1)
    expected = weights_quantizer(form).fake(weights) @ value.fake(v)
    full = scaled_dot_product_attention(*arguments)
    with fake_attention([one]):
        first, second = (scaled_dot_product_attention(*arguments) for _ in range(2))
    torch.testing.assert_close(first, full)
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-6)
    assert 1e-3 < float((second - full).norm() / full.norm()) < 0.1


def _quantizer(form: str, largest: float) -> ActivationQuantizer:
    return Float8ActivationQuantizer.of(largest) if form == "e4m3" else ActivationQuantizer(8, True, largest / 127, 0)
