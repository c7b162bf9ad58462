"""Scales as values of the type that a graph stores them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.placement import HighPrecision

_DTYPES: Mapping[HighPrecision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def with_scales_in(precision: HighPrecision, layers: Iterable[QuantizedLayer]) -> list[QuantizedLayer]:
    """The same integers with the nearest scales that the type has, so that oracle and graph scale alike.

    In float16 a scale moves by 2^-11 of itself at most, far less than half a step of the integers; in bfloat16 by 2^-9, a quarter of a step
    of the largest 8-bit integers. In float16, below 6e-5, where it loses digits, a channel's integer weights are too small to matter; 8-bit
    floats, whose scales are smaller, lose 2^-7 of a weight at most where a channel's largest is above 0.002. No scale becomes zero.
    """
    dtype = _DTYPES[precision]
    return [
        replace(
            layer,
            weight=replace(layer.weight, scale=_nearest(layer.weight.scale, dtype)),
            input=_activation(layer.input, dtype),
            output=_activation(layer.output, dtype),
        )
        for layer in layers
    ]


def _activation(quantizer: ActivationQuantizer | None, dtype: torch.dtype) -> ActivationQuantizer | None:
    if quantizer is None:
        return None
    return replace(quantizer, scale=float(_nearest(torch.tensor(quantizer.scale), dtype)))


def _nearest(scale: Tensor, dtype: torch.dtype) -> Tensor:
    smallest: Any = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return scale.to(dtype).float().clamp_min(smallest)
