"""AdaRound: whether each weight is rounded up or down is learned (Nagel et al. 2020, arXiv 2004.10568)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.quantizers.quantizers import WeightQuantizer, weight_range

GAMMA, ZETA = -0.1, 1.1
"""Stretch of the sigmoid (eq. 23): clipped to [0, 1], it reaches both ends at finite `V`."""


class SoftRounding(nn.Module):
    """A weight between the integer below it and the one above: `scale * clip(floor(w / scale) + h(V))`, starting as the weight itself.

    Args:
        weight: float32 [channels, ...].
        quantizer: its scales and bits, which stay as they are.
    """

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self._range = weight_range(quantizer.bits)
        self._scale = quantizer.scale.to(weight.device).reshape(-1, *[1] * (weight.ndim - 1))
        ratio = weight.detach().float() / self._scale
        self._floor = torch.floor(ratio)
        self.V = nn.Parameter(torch.logit((ratio - self._floor - GAMMA) / (ZETA - GAMMA)))

    def h(self) -> Tensor:
        """Share of a step above the lower integer, in [0, 1] (eq. 23)."""
        return (torch.sigmoid(self.V) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self) -> Tensor:
        """The soft weight, float32 [channels, ...]."""
        return self._scale * (self._floor + self.h()).clamp(*self._range)

    def undecided(self, beta: float) -> Tensor:
        """Sum of `1 - |2h - 1|^beta` (eq. 24): 0 once every weight is up or down."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    def integers(self) -> Tensor:
        """int8 [channels, ...], on the CPU."""
        return (self._floor + (self.V >= 0)).clamp(*self._range).to(torch.int8).cpu()


def annealed_beta(progress: float, warm_up: float = 0.2, start: float = 20.0, end: float = 2.0) -> float | None:
    """Exponent of the regulariser at a share of the iterations: none during warm-up, then from `start` to `end` along a straight line.

    A large exponent leaves weights free that are far from both integers, a small one drives them there.
    """
    if progress < warm_up:
        return None
    return end + (start - end) * (1 - progress) / (1 - warm_up)
