"""The stored bias of an integer kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule


def _layer(scales: list[float], bias: Tensor | None, rule: Rule | None = None) -> QuantizedLayer:
    channels = len(scales)
    return QuantizedLayer(
        layer=Layer("fc", "Gemm", "inner", (channels, 2), macs=2 * channels, source="fc"),
        rule=rule or Rule(8, 8, 8, "int32"),
        integers=torch.ones(channels, 2, dtype=torch.int8),
        weight=WeightQuantizer(8, torch.tensor(scales)),
        input=ActivationQuantizer(8, signed=False, scale=0.5, zero_point=128),
        output=None,
        bias=bias,
    )


def test_bias_is_counted_in_products_of_input_and_weight_scale() -> None:
    layer = _layer([0.25, 2.0], torch.tensor([1.0, -3.2]))
    assert layer.bias_scale.tolist() == [0.125, 1.0]
    assert layer.bias_integers().dtype == torch.int32
    assert layer.bias_integers().tolist() == [8, -3]
    found = layer.dequantized_bias(torch.float64)
    assert found is not None
    assert found.dtype == torch.float64
    assert found.tolist() == [1.0, -3.0]


def test_bias_that_does_not_fit_saturates_and_never_changes_its_sign() -> None:
    layer = _layer([1e-9, 1e-9], torch.tensor([100.0, -100.0]))
    assert layer.bias_integers().tolist() == [2**31 - 1, -(2**31 - 1)]


def test_float_bias_is_left_as_it_is() -> None:
    bias = torch.tensor([0.123456789, -1e-20])
    found = _layer([0.25, 2.0], bias, Rule(8, 8, None, "float")).dequantized_bias(torch.float32)
    assert found is not None
    torch.testing.assert_close(found, bias, rtol=0, atol=0)


@pytest.mark.parametrize("rule", [Rule(8, 8, 8, "int32"), Rule(8, 8, None, "float")])
def test_layer_without_bias_has_none(rule: Rule) -> None:
    assert _layer([0.25], None, rule).dequantized_bias(torch.float32) is None


def test_raised_weight_scale_keeps_a_large_bias_within_int32() -> None:
    bias = torch.tensor([1000.0, -1000.0, 0.0])
    floor = bias.abs() / (0.5 * 2**30)
    raised = WeightQuantizer(8, torch.tensor([1e-12, 1e-12, 1e-12])).at_least(floor)
    layer = _layer(raised.scale.tolist(), bias)
    found = layer.dequantized_bias(torch.float64)
    assert found is not None
    torch.testing.assert_close(found, bias.double(), rtol=1e-6, atol=0)
    assert int(layer.bias_integers().abs().max()) <= 2**30 + 2**10  # room for the products to come
