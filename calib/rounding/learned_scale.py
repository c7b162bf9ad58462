"""Learns the step size of an activation quantizer (LSQ: Esser et al. 2020, arXiv 1902.08153)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from calib.quantizers.quantizers import ActivationQuantizer

WIDEST = 2.0
"""Largest factor by which a scale may grow or shrink: weight scales leave a factor of two before an int32 bias, counted in input scales,
overflows."""


class LearnedScale(nn.Module):
    """Fake quantizer with the learned scale `scale exp(a)`, so that one learning rate fits all scales. The zero point is fixed."""

    def __init__(self, start: ActivationQuantizer, device: torch.device) -> None:
        super().__init__()
        self._start = start
        self.a = nn.Parameter(torch.zeros((), device=device))

    def forward(self, x: Tensor) -> Tensor:
        fake: Tensor = _LearnedStep.apply(x.float(), self._scale(), self._start)  # type: ignore[no-untyped-call]  # torch does not type `apply`
        return fake.to(x.dtype)

    def quantizer(self) -> ActivationQuantizer:
        start = self._start
        return ActivationQuantizer(start.bits, start.signed, float(self._scale().detach()), start.zero_point)

    def _scale(self) -> Tensor:
        limit = math.log(WIDEST)
        return self._start.scale * self.a.clamp(-limit, limit).exp()


class StraightThrough(nn.Module):
    """Fake quantizer whose scale stays as it is. Rounding and clipping pass gradients straight through.

    Scales of floats are not learned: those of blocks are found while the network runs, and any scale of a tensor gives a float the same
    relative error.
    """

    def __init__(self, start: ActivationQuantizer) -> None:
        super().__init__()
        self._start = start

    def forward(self, x: Tensor) -> Tensor:
        return x + (self._start.fake(x.detach()) - x).detach()

    def quantizer(self) -> ActivationQuantizer:
        return self._start


def learned_scale(start: ActivationQuantizer, device: torch.device) -> LearnedScale | StraightThrough:
    """Return the fake quantizer that a block learns with: integers learn their scale."""
    return LearnedScale(start, device) if type(start) is ActivationQuantizer else StraightThrough(start)


class _LearnedStep(torch.autograd.Function):
    """`ActivationQuantizer.fake` with gradients: rounding passes them straight through, clipping stops those of `x` (LSQ, eq. 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        integers = torch.round(x / scale) + quantizer.zero_point
        inside = (integers >= quantizer.low) & (integers <= quantizer.high)
        fake: Tensor = (integers.clamp_(quantizer.low, quantizer.high) - quantizer.zero_point) * scale
        ctx.save_for_backward(x, scale, fake, inside)
        return fake

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale, fake, inside = ctx.saved_tensors
        through = grads[0] * inside
        return through, ((grads[0] * fake).sum() - (through * x).sum()) / scale, None
