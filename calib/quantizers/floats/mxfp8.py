"""MXFP8: values of 8 bits (E4M3) in blocks of 32, with scales that are powers of two (E8M0: the exponent plus 127).

The scale of a block is the smallest power of two at which no value exceeds 448. OCP Microscaling Formats 1.0 (6.3) leaves the rounding of
scales to the implementation; rounding them up is what NVIDIA's libraries do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.quantizers.quantizers import FLOAT8_LARGEST, ActivationQuantizer, WeightQuantizer, float8

BLOCK = 32
BIAS = 127
"""What is added to the exponent of a scale when it is stored."""

EXPONENTS = (1, 254)
"""Smallest and largest stored scale: 0 would be a subnormal float32, and 255 is NaN."""


def stored_exponent(largest: Tensor) -> Tensor:
    """Return the stored scales, uint8, of blocks with these largest magnitudes."""
    mantissa, exponent = torch.frexp(largest.float() / FLOAT8_LARGEST)  # mantissas lie in [0.5, 1)
    up = torch.where(mantissa > 0.5, exponent, exponent - 1)
    return (up + BIAS).clamp(*EXPONENTS).to(torch.uint8)


def scale_of(stored: Tensor) -> Tensor:
    """Return the scales that are stored as uint8; float32."""
    return torch.ldexp(torch.ones_like(stored, dtype=torch.float64), stored.int() - BIAS).float()


@dataclass(frozen=True)
class Mxfp8WeightQuantizer(WeightQuantizer):
    """Quantizer of a weight [channels, inputs]: `scale` is float32 [channels, blocks], powers of two."""

    @classmethod
    def of(cls, weight: Tensor) -> Mxfp8WeightQuantizer:
        """Return the quantizer of a weight."""
        largest = weight.detach().float().abs().unflatten(1, (-1, BLOCK)).amax(-1)
        return cls(8, scale_of(stored_exponent(largest)))

    def integers(self, weight: Tensor) -> Tensor:
        """Return the values to store, float8_e4m3fn [channels, inputs]."""
        return float8(weight / self.along(weight))

    @property
    def block_scale(self) -> Tensor:
        """The scales of the blocks as they are stored, uint8 [channels, blocks]."""
        return (torch.frexp(self.scale)[1] - 1 + BIAS).to(torch.uint8)


@dataclass(frozen=True)
class Mxfp8ActivationQuantizer(ActivationQuantizer):
    """Quantizer whose block scales are found while the network runs. Nothing is static: `scale` is 1 and `zero_point` 0."""

    @classmethod
    def dynamic(cls) -> Mxfp8ActivationQuantizer:
        return cls(8, signed=True, scale=1.0, zero_point=0)

    def fake(self, x: Tensor) -> Tensor:
        """Quantize and dequantize blocks of the last axis. Values and scales are found in float32."""
        blocks = x.float().unflatten(-1, (-1, BLOCK))
        scale = scale_of(stored_exponent(blocks.abs().amax(-1, keepdim=True)))
        wide = torch.promote_types(x.dtype, torch.float32)
        return (float8(blocks / scale).to(wide) * scale.to(wide)).flatten(-2).to(x.dtype)
