"""Measures what quantization changes at the output of a layer, on sampled rows of its input.

An error of weights or activations counts by what it does to the output. Errors that meet correlated inputs add up there, and errors that
meet inputs with a mean shift it: the same way at every step, so that the whole chain drifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calib.quantizers.quantizers import ActivationQuantizer

SHRINKAGE = 0.05
"""Weight of a multiple of the identity in the second moments of a layer's input; the rest is from the sampled rows."""


@dataclass(frozen=True, eq=False)
class RowsOfGroup:
    """Rows [count, inputs] of the input of one group of channels."""

    rows: Tensor

    @cached_property
    def power(self) -> float:
        """Mean square of the inputs."""
        return float(self.rows.square().mean())

    def error(self, change: Tensor, beside: Tensor | float = 0.0) -> Tensor:
        """Return the mean squared change of every output, [channels], when the weights [channels, inputs] change. `beside`
        [channels, count] is what changes the outputs of the rows already.

        A few rows do not see every direction of the input, so their second moments are shrunk towards a multiple of the identity (Ledoit
        and Wolf 2004).
        """
        seen = (change @ self.rows.T + beside).square().mean(dim=1)
        return (1 - SHRINKAGE) * seen + SHRINKAGE * self.power * change.square().sum(dim=1)


@dataclass(frozen=True, eq=False)
class ReadingLayer:
    """A layer that reads a quantized tensor.

    Attributes:
        rows: rows of the tensor, float32 [count, groups, inputs]; see `calib.quantizers.outputs.input_rows`.
        weight: full-precision weight, [channels, ...].
        part: part of the weight that reads the quantized tensor, if the rest reads the tensor itself.
    """

    rows: Tensor
    weight: Tensor
    part: Tensor | None = None

    @cached_property
    def variance(self) -> float:
        """Sum of the variances of all outputs."""
        return float(self._outputs(self.rows, self.weight).var(dim=1, correction=0).sum())

    def error(self, quantizer: ActivationQuantizer, clipping_weight: float) -> float:
        """Return the squared error of the outputs relative to their variance. Errors by clipping count `clipping_weight` times."""
        low, high = ((end - quantizer.zero_point) * quantizer.scale for end in (quantizer.low, quantizer.high))
        error = self._power(quantizer.fake(self.rows) - self.rows)
        clipped = self.rows - self.rows.clamp(low, high)
        if clipped.any():
            error += (clipping_weight - 1) * self._power(clipped)
        return error / max(self.variance, torch.finfo(torch.float32).tiny)

    def _power(self, change: Tensor) -> float:
        return float(self._outputs(change, self.weight if self.part is None else self.part).square().sum()) / len(change)

    @staticmethod
    def _outputs(rows: Tensor, weight: Tensor) -> Tensor:
        """[groups, count, channels of a group]"""
        weight = weight.detach().float().reshape(rows.shape[1], -1, rows.shape[2])
        return rows.transpose(0, 1) @ weight.transpose(1, 2)


def error_at_readers(readers: Sequence[ReadingLayer], quantizer: ActivationQuantizer, clipping_weight: float) -> float:
    """Return the sum of the relative errors of all layers that read a tensor; see `ReadingLayer.error`."""
    return sum(reader.error(quantizer, clipping_weight) for reader in readers)
