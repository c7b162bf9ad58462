"""Tunes a weight by an adapter of low rank and rounds their sum (EfficientDM: He et al. 2023, arXiv 2310.03270, section 3.2).

The adapter is merged into the weight before rounding, so it costs nothing at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.quantizers.quantizers import WeightQuantizer
from calib.rounding.soft_weight import SoftWeight

ADAPTER_RATE = 1e-2
"""Adam's initial learning rate for `A` and `B`, whose product counts in steps of the weight's quantizer. It decays to 0."""


class AdaptedWeight(SoftWeight):
    """A weight and its adapter, rounded to the nearest: `Q(W + u B A)`, with `u` the step of each channel. Rounding passes gradients
    straight through. `B` starts at 0, so the weight starts as it is.

    Args:
        weight: float32 [channels, ...]; the adapter has a value for each of its values, as a matrix [channels, inputs].
        quantizer: scales and bits of the weight; they stay fixed.
        rank: rank of the adapter.
    """

    rate = ADAPTER_RATE
    decays = True

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer, rank: int) -> None:
        super().__init__()
        self._weight, self._quantizer = weight.detach().float(), quantizer
        flat = self._weight.flatten(1)
        self._unit = quantizer.along(self._weight).expand_as(self._weight).flatten(1).mean(dim=1, keepdim=True)
        rank = min(rank, *flat.shape)
        start = torch.randn(rank, flat.shape[1], generator=torch.Generator().manual_seed(0)) / rank**0.5
        self.A = nn.Parameter(start.to(flat.device))
        self.B = nn.Parameter(flat.new_zeros(len(flat), rank))

    def unrounded(self) -> Tensor:
        """See `SoftWeight.unrounded`."""
        return self._weight + (self._unit * (self.B @ self.A)).reshape(self._weight.shape)

    def forward(self) -> Tensor:
        """See `SoftWeight.forward`."""
        merged = self.unrounded()
        rounded = self._quantizer.dequantize(self._quantizer.integers(merged.detach()))
        return merged + (rounded - merged).detach()

    def integers(self) -> Tensor:
        """See `SoftWeight.integers`."""
        return self._quantizer.integers(self.unrounded().detach()).cpu()
