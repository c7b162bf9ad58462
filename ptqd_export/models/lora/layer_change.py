"""The change that a LoRA makes to one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptqd_export.models.lora.low_rank import LowRank


@dataclass(frozen=True)
class Magnitude:
    """Norms that the changed weight gets (DoRA, Liu et al. 2024).

    Attributes:
        values: a norm for each output channel, or, shaped [1, in, ...], for each input channel.
    """

    values: Tensor

    def fits(self, weight: Tensor) -> bool:
        """Return whether the shape fits a weight."""
        return weight.ndim >= 2 and self.values.ndim > 0 and self.values.numel() == weight.shape[self._axis(weight)]

    def applied(self, weight: Tensor) -> Tensor:
        """Return the weight with these norms."""
        axis = self._axis(weight)
        others = [dim for dim in range(weight.ndim) if dim != axis]
        values = self.values.float().reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
        norms: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        return values * weight / norms

    def _axis(self, weight: Tensor) -> int:
        shape = tuple(self.values.shape)
        return int(shape[0] != weight.shape[0] and shape[:2] == (1, weight.shape[1]))


@dataclass(frozen=True)
class LayerChange:
    """Everything that a file holds for one layer.

    Attributes:
        low_rank: low-rank change of the weight, or None.
        magnitude: norms of the changed weight, or None.
        weight: change of the weight that is not factored, or None.
        bias: change of the bias, or None.
    """

    low_rank: LowRank | None
    magnitude: Magnitude | None
    weight: Tensor | None
    bias: Tensor | None

    @property
    def shapes(self) -> str:
        """The shapes, for error messages."""
        magnitude = None if self.magnitude is None else self.magnitude.values
        named = {"magnitude": magnitude, "weight": self.weight, "bias": self.bias}
        others = [f"{name} {tuple(value.shape)}" for name, value in named.items() if value is not None]
        return ", ".join([*([] if self.low_rank is None else [self.low_rank.shapes]), *others])

    def fits(self, layer: nn.Module) -> bool:
        """Return whether the shapes fit a layer's weight and bias."""
        weight, bias = layer.weight, getattr(layer, "bias", None)
        assert isinstance(weight, Tensor)
        return (
            (self.low_rank is None or self.low_rank.fits(weight))
            and (self.magnitude is None or self.magnitude.fits(weight))
            and (self.weight is None or self.weight.shape == weight.shape)
            and (self.bias is None or (isinstance(bias, Tensor) and self.bias.shape == bias.shape))
        )

    @torch.no_grad()
    def add_to(self, layer: nn.Module, scale: float) -> None:
        """Change a layer in place: `W + scale * delta`, then the norms, as PEFT and diffusers merge. The shapes must fit."""
        weight, bias = layer.weight, getattr(layer, "bias", None)
        assert isinstance(weight, Tensor)
        changed = weight.float()
        if self.low_rank is not None:
            changed = changed + scale * self.low_rank.delta(weight.shape)
        if self.weight is not None:
            changed = changed + scale * self.weight.float()
        weight.copy_(changed if self.magnitude is None else self.magnitude.applied(changed))
        if self.bias is not None and isinstance(bias, Tensor):
            bias += scale * self.bias.float()
