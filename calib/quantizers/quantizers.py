"""Quantizers: integers or 8-bit floats, and what they stand for. Rounding is to the nearest, ties to even, as in ONNX."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class WeightQuantizer:
    """Symmetric, per output channel: scale [channels] float32, integers in [-2^(bits-1), 2^(bits-1) - 1] (8 bits: from -127)."""

    bits: int
    scale: Tensor

    def integers(self, weight: Tensor) -> Tensor:
        """What is stored, int8 [channels, ...]."""
        low, high = weight_range(self.bits)
        return torch.round(weight / self._along(weight)).clamp(low, high).to(torch.int8)

    def dequantize(self, integers: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return integers.to(dtype) * self._along(integers).to(dtype)

    def at_least(self, floor: Tensor) -> WeightQuantizer:
        """The same with every scale at least `floor` [channels]: keeps an int32 bias, counted in these scales, from overflowing."""
        return replace(self, scale=torch.maximum(self.scale, floor))

    def _along(self, weight: Tensor) -> Tensor:
        return self.scale.to(weight.device).reshape(-1, *[1] * (weight.ndim - 1))


def weight_range(bits: int) -> tuple[int, int]:
    """Integers of a weight. -128 is left out: it gains nothing at 8 bits, and some kernels overflow on it."""
    return (-127 if bits == 8 else -(2 ** (bits - 1))), 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class ActivationQuantizer:
    """Static, per tensor: `scale` (a float32 value) and `zero_point`, integers in [low, high]."""

    bits: int
    signed: bool
    scale: float
    zero_point: int

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return self.low + (1 << self.bits) - 1

    def fake(self, x: Tensor) -> Tensor:
        """Quantize and dequantize, in the dtype of `x` but at least in float32: the arithmetic of QuantizeLinear and DequantizeLinear."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = torch.tensor(self.scale, dtype=dtype)
        integers = (x.to(dtype) / scale).round_().add_(self.zero_point).clamp_(self.low, self.high)
        return integers.sub_(self.zero_point).mul_(scale).to(x.dtype)


FLOAT8_LARGEST = 448.0
"""Of E4M3 without infinities, `torch.float8_e4m3fn`."""


@dataclass(frozen=True)
class Float8WeightQuantizer(WeightQuantizer):
    """Per output channel, in place of the integers E4M3 values in [-448, 448]. The largest weight of a channel becomes the largest of them:
    a float's relative error is the same at any scale, so that none is searched for.
    """

    @classmethod
    def of(cls, weight: Tensor) -> Float8WeightQuantizer:
        """For a weight [channels, ...]."""
        largest = weight.detach().float().abs().reshape(len(weight), -1).amax(dim=1)
        return cls(8, (largest / FLOAT8_LARGEST).clamp_min(SMALLEST_SCALE))

    def integers(self, weight: Tensor) -> Tensor:
        """What is stored, float8_e4m3fn [channels, ...]."""
        return _float8(weight / self._along(weight))


@dataclass(frozen=True)
class Float8ActivationQuantizer(ActivationQuantizer):
    """Static, per tensor, in E4M3; `zero_point` is 0."""

    @classmethod
    def of(cls, largest: float) -> Float8ActivationQuantizer:
        """For values of at most this magnitude."""
        return cls(8, signed=True, scale=float(torch.tensor(max(largest / FLOAT8_LARGEST, SMALLEST_SCALE))), zero_point=0)

    def fake(self, x: Tensor) -> Tensor:
        """See `ActivationQuantizer.fake`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = torch.tensor(self.scale, dtype=dtype)
        return (_float8(x.to(dtype) / scale).to(dtype) * scale).to(x.dtype)


def _float8(x: Tensor) -> Tensor:
    """The nearest values, from float32 as runtimes have it; of what lies beyond the range torch makes a NaN, QuantizeLinear the largest."""
    return x.float().clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(torch.float8_e4m3fn)
