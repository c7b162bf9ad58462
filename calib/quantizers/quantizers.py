"""Quantizers map values to integers or 8-bit floats and back. They round to nearest, ties to even, as ONNX does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class WeightQuantizer:
    """Symmetric quantizer with integers in [-2^(bits-1), 2^(bits-1) - 1] (8 bits: from -127).

    Attributes:
        bits: bit width of the integers.
        scale: float32 [channels]; or [channels, groups], one for each group of neighbouring inputs of a channel.
    """

    bits: int
    scale: Tensor

    def integers(self, weight: Tensor) -> Tensor:
        """Return the values to store, int8 [channels, ...]."""
        low, high = weight_range(self.bits)
        return torch.round(weight / self.along(weight)).clamp(low, high).to(torch.int8)

    def dequantize(self, integers: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return integers.to(dtype) * self.along(integers).to(dtype)

    def at_least(self, floor: Tensor) -> WeightQuantizer:
        """Raises every scale to at least `floor` [channels], so that an int32 bias counted in these scales does not overflow."""
        return replace(self, scale=torch.maximum(self.scale, floor))

    def along(self, weight: Tensor) -> Tensor:
        """Return the scales in a shape that broadcasts to a weight [channels, ...], on its device."""
        scale = self.scale.to(weight.device)
        if scale.ndim == 2:
            return scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
        return scale.reshape(-1, *[1] * (weight.ndim - 1))


def weight_range(bits: int) -> tuple[int, int]:
    """Smallest and largest integer of a weight. -128 is excluded: it gains nothing at 8 bits, and some kernels overflow on it."""
    return (-127 if bits == 8 else -(2 ** (bits - 1))), 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class ActivationQuantizer:
    """Static per-tensor quantizer: `scale` (a float32 value) and `zero_point`, integers in [low, high]."""

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
        """Quantize and dequantizes in the dtype of `x`, but at least in float32, as QuantizeLinear and DequantizeLinear do."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = torch.tensor(self.scale, dtype=dtype)
        integers = (x.to(dtype) / scale).round_().add_(self.zero_point).clamp_(self.low, self.high)
        return integers.sub_(self.zero_point).mul_(scale).to(x.dtype)


FLOAT8_LARGEST = 448.0
"""Largest value of E4M3 without infinities, `torch.float8_e4m3fn`."""


@dataclass(frozen=True)
class Float8WeightQuantizer(WeightQuantizer):
    """Per-channel quantizer with E4M3 values in [-448, 448] instead of integers. The largest weight of a channel becomes 448: a float's
    relative error is the same at any scale, so there is no scale to search for.
    """

    @classmethod
    def of(cls, weight: Tensor) -> Float8WeightQuantizer:
        """Return the quantizer of a weight [channels, ...]."""
        largest = weight.detach().float().abs().reshape(len(weight), -1).amax(dim=1)
        return cls(8, (largest / FLOAT8_LARGEST).clamp_min(SMALLEST_SCALE))

    def integers(self, weight: Tensor) -> Tensor:
        """Return the values to store, float8_e4m3fn [channels, ...]."""
        return float8(weight / self.along(weight))


@dataclass(frozen=True)
class Float8ActivationQuantizer(ActivationQuantizer):
    """Static per-tensor quantizer in E4M3; `zero_point` is 0."""

    @classmethod
    def of(cls, largest: float) -> Float8ActivationQuantizer:
        """Return the quantizer for values of at most this magnitude."""
        return cls(8, signed=True, scale=float(torch.tensor(max(largest / FLOAT8_LARGEST, SMALLEST_SCALE))), zero_point=0)

    def fake(self, x: Tensor) -> Tensor:
        """See `ActivationQuantizer.fake`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = torch.tensor(self.scale, dtype=dtype)
        return (float8(x.to(dtype) / scale).to(dtype) * scale).to(x.dtype)


def float8(x: Tensor) -> Tensor:
    """Round to the nearest E4M3 value from float32, as runtimes do. Clamped first: beyond the range, torch returns NaN and QuantizeLinear
    the largest value.
    """
    return x.float().clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(torch.float8_e4m3fn)
