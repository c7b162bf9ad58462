"""Scales as float16 holds them; integers stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from calib.quantizers.scale_type import with_scales_in

LAYER = QuantizedLayer(
    layer=Layer("conv", "Conv", "inner", (3, 1, 1, 1), 1, "conv"),
    rule=Rule(8, 8, None, "float"),
    integers=torch.tensor([1, -2, 3], dtype=torch.int8).reshape(3, 1, 1, 1),
    weight=WeightQuantizer(8, torch.tensor([0.1, 3e-7, 1e-12])),
    input=ActivationQuantizer(8, True, float(np.float32(0.3)), 0),
    output=None,
    bias=None,
)


def test_float32_keeps_everything() -> None:
    (kept,) = with_scales_in("fp32", [LAYER])
    assert torch.equal(kept.weight.scale, LAYER.weight.scale)
    assert kept.input == LAYER.input


def test_float16_takes_its_nearest_values_and_never_zero() -> None:
    (half,) = with_scales_in("fp16", [LAYER])
    assert half.weight.scale.dtype == torch.float32
    assert half.weight.scale.tolist() == [float(np.float16(0.1)), float(np.float16(3e-7)), 2.0**-24]
    assert half.input is not None
    assert half.input.scale == float(np.float16(0.3)) == pytest.approx(0.3, rel=2**-11)
    assert half.integers is LAYER.integers
    assert half.output is None
