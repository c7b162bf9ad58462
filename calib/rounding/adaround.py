"""AdaRound: learns whether each weight is rounded up or down (Nagel et al. 2020, arXiv 2004.10568)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.quantizers.quantizers import WeightQuantizer, weight_range
from calib.rounding.soft_weight import SoftWeight

GAMMA, ZETA = -0.1, 1.1
"""Stretch of the sigmoid (eq. 23). Clipped to [0, 1], the stretched sigmoid reaches both ends at finite `V`."""

ROUNDING_RATE = 0.3
"""Adam's learning rate for `V`."""


class SoftRounding(SoftWeight):
    """A weight between the integers below and above it: `scale * clip(floor(w / scale) + h(V))`. It starts at the original weight.

    Args:
        weight: float32 [channels, ...].
        quantizer: scales and bits of the weight; they stay fixed.
    """

    rate = ROUNDING_RATE
    decays = False

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self._weight = weight.detach().float()
        self._range = weight_range(quantizer.bits)
        self._scale = quantizer.along(weight)
        ratio = self._weight / self._scale
        self._floor = torch.floor(ratio)
        self.V = nn.Parameter(torch.logit((ratio - self._floor - GAMMA) / (ZETA - GAMMA)))

    def h(self) -> Tensor:
        """Fraction of a step above the lower integer, in [0, 1] (eq. 23)."""
        return (torch.sigmoid(self.V) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self) -> Tensor:
        """The soft weight, float32 [channels, ...]."""
        return self._scale * (self._floor + self.h()).clamp(*self._range)

    def unrounded(self) -> Tensor:
        """The original weight, float32 [channels, ...]."""
        return self._weight

    def undecided(self, beta: float) -> Tensor:
        """Sum of `1 - |2h - 1|^beta` (eq. 24), 0 once every weight is rounded up or down."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    def integers(self) -> Tensor:
        """The rounded weight as int8 [channels, ...], on the CPU."""
        return (self._floor + (self.V >= 0)).clamp(*self._range).to(torch.int8).cpu()


def annealed_beta(progress: float, warm_up: float = 0.2, start: float = 20.0, end: float = 2.0) -> float | None:
    """Exponent of the regulariser after a fraction of the iterations: None during warm-up, then linear from `start` to `end`.

    A large exponent leaves weights free that are far from both integers; a small one drives them to an integer.
    """
    if progress < warm_up:
        return None
    return end + (start - end) * (1 - progress) / (1 - warm_up)
