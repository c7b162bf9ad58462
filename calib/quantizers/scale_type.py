"""Rounds scales to the type that a graph stores them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from calib.quantizers.attention.quantized_attention import QuantizedAttention
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.placement import HighPrecision
from calib.quantizers.rules.precision import BLOCK_FORMATS

_DTYPES: Mapping[HighPrecision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def with_scales_in(precision: HighPrecision, layers: Iterable[QuantizedLayer]) -> list[QuantizedLayer]:
    """Return the same integers with scales rounded to the type, so that oracle and graph use the same scales.

    float16 changes a scale by at most 2^-11 of its value, far less than half a step of the integers; bfloat16 by 2^-9, a quarter of a step
    of the largest 8-bit integers. float16 loses digits below 6e-5, but there a channel's integer weights are too small to matter. 8-bit
    floats have smaller scales; they lose at most 2^-7 of a weight if the channel's largest weight is above 0.002. No scale becomes zero.
    Scales of blocks of floats have types of their own, whatever surrounds them.
    """
    dtype = _DTYPES[precision]
    return [
        replace(
            layer,
            weight=layer.weight if layer.rule.form in BLOCK_FORMATS else replace(layer.weight, scale=_nearest(layer.weight.scale, dtype)),
            input=layer.input if layer.rule.activation_form in BLOCK_FORMATS else _activation(layer.input, dtype),
            output=_activation(layer.output, dtype),
        )
        for layer in layers
    ]


def with_attention_scales_in(precision: HighPrecision, attention: Iterable[QuantizedAttention]) -> list[QuantizedAttention]:
    """Return the same attention with scales rounded to the type."""
    dtype = _DTYPES[precision]
    return [
        replace(
            one,
            query=_rounded(one.query, dtype),
            key=_rounded(one.key, dtype),
            value=_rounded(one.value, dtype),
            weights=_rounded(one.weights, dtype),
        )
        for one in attention
    ]


def _activation(quantizer: ActivationQuantizer | None, dtype: torch.dtype) -> ActivationQuantizer | None:
    return None if quantizer is None else _rounded(quantizer, dtype)


def _rounded(quantizer: ActivationQuantizer, dtype: torch.dtype) -> ActivationQuantizer:
    return replace(quantizer, scale=float(_nearest(torch.tensor(quantizer.scale), dtype)))


def _nearest(scale: Tensor, dtype: torch.dtype) -> Tensor:
    smallest: Any = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return scale.to(dtype).float().clamp_min(smallest)
