"""NVFP4: values of 4 bits (E2M1) in blocks of 16, with scales of 8 bits (E4M3), and one float32 scale for all scales of a tensor.

A value is `code * block_scale * global_scale`. E2M1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6 (OCP Microscaling Formats 1.0, 5.3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.quantizers.quantizers import FLOAT8_LARGEST, SMALLEST_SCALE, ActivationQuantizer, WeightQuantizer, float8

BLOCK = 16
LARGEST = 6.0


def e2m1(x: Tensor) -> Tensor:
    """Round to the nearest E2M1 value, ties to the even mantissa; values beyond 6 become 6."""
    magnitude = x.abs().clamp(max=LARGEST)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign(torch.round(magnitude / step) * step, x)


def global_scale_of(largest: float) -> float:
    """Return the float32 scale at which a block of this magnitude has the largest block scale."""
    return float(torch.tensor(max(largest / (LARGEST * FLOAT8_LARGEST), SMALLEST_SCALE)))


def storable(scale: Tensor, global_scale: float) -> Tensor:
    """Return the nearest scales of blocks that E4M3 can store in units of the global scale, but not 0; float32."""
    return stored(scale, global_scale).float() * global_scale


def stored(scale: Tensor, global_scale: float) -> Tensor:
    """Return scales of blocks in units of the global scale, float8_e4m3fn; at least the smallest one."""
    return float8((scale / global_scale).clamp(min=torch.finfo(torch.float8_e4m3fn).smallest_normal / 8))


@dataclass(frozen=True)
class Nvfp4WeightQuantizer(WeightQuantizer):
    """Quantizer of a weight [channels, inputs]: `scale` is float32 [channels, blocks], the products of block scales and global scale."""

    global_scale: float = 1.0

    def integers(self, weight: Tensor) -> Tensor:
        """Return E2M1 values, float8_e4m3fn [channels, inputs], which has all of them."""
        return e2m1(weight / self.along(weight)).to(torch.float8_e4m3fn)

    @property
    def block_scale(self) -> Tensor:
        """The scales of the blocks as they are stored, float8_e4m3fn [channels, blocks]."""
        return stored(self.scale, self.global_scale)


@dataclass(frozen=True)
class Nvfp4ActivationQuantizer(ActivationQuantizer):
    """Quantizer whose block scales are found while the network runs: each takes the largest value of a block of input channels to 6.
    `scale` is the global scale, which is static; `zero_point` is 0.
    """

    @classmethod
    def of(cls, largest: float) -> Nvfp4ActivationQuantizer:
        """Return the quantizer for values of at most this magnitude."""
        return cls(4, signed=True, scale=global_scale_of(largest), zero_point=0)

    @property
    def largest_scale(self) -> float:
        """What the largest value of a block is divided by to give the stored scale, a float32 value."""
        return float(torch.tensor(self.scale) * LARGEST)

    def fake(self, x: Tensor) -> Tensor:
        """Quantize and dequantize blocks of the last axis. Codes and scales are found in float32."""
        blocks = x.float().unflatten(-1, (-1, BLOCK))
        scale = float8(blocks.abs().amax(-1, keepdim=True) / self.largest_scale).float() * self.scale
        codes = torch.where(scale > 0, e2m1(blocks / scale), 0.0)
        wide = torch.promote_types(x.dtype, torch.float32)
        return (codes.to(wide) * scale.to(wide)).flatten(-2).to(x.dtype)
