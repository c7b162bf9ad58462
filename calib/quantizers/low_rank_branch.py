"""A branch of low rank beside a quantized product: `Q(x) Q(W - U V) + x V^T U^T` (SVDQuant: Li et al. 2024, arXiv 2411.05007).

What the branch computes is not quantized. The errors of rounded activations and weights meet only the rest of the weight, which is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.quantizers.observers import ObservedActivations
from calib.quantizers.outputs.output_error import SHRINKAGE

OVERSAMPLING = 16
"""Singular vectors that the subspace iteration carries beyond the rank."""

ITERATIONS = 8
"""Products with the matrix and its transpose. More leave the error of a rank as it is to three digits, also for random matrices."""


@dataclass(frozen=True, eq=False)
class LowRankBranch:
    """Two factors in float.

    Attributes:
        down: float32 [inputs, rank].
        up: float32 [rank, outputs].
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the branch adds to the product of `x` [..., inputs], in the type and on the device of `x`."""
        return x @ self.down.to(x) @ self.up.to(x)

    def rest_of(self, weight: Tensor) -> Tensor:
        """Return the part of a weight [outputs, inputs] that is quantized, float32."""
        return weight.float() - (self.down @ self.up).T.to(weight.device)


def low_rank_branch(weight: Tensor, rank: int, rows: Tensor) -> LowRankBranch:
    """Return the branch that leaves least of a weight, where an input counts by its mean square.

    The weights of loud inputs meet the largest activations, so they are the ones to take out of the quantized product: with `d_j` the mean
    square of input j, the branch is the truncated singular value decomposition of `W diag(d)^(1/2)`. Correlations of the inputs are left
    out, because the errors of rounded activations hardly have any.

    Args:
        weight: weight of a linear layer, [outputs, inputs].
        rank: number of columns of the factors, less than inputs and outputs.
        rows: sampled rows of the layer's input, float32 [count, 1, inputs]; see `calib.quantizers.outputs.input_rows`.
    """
    d = rows[:, 0].square().mean(dim=0)
    mean = d.mean()
    loudness = (((1 - SHRINKAGE) * d + SHRINKAGE * mean) / mean).sqrt() if mean > 0 else torch.ones_like(d)
    u, s, v = _leading(weight.detach().float().cpu() * loudness, rank)
    root = s.sqrt()  # halves of every singular value keep both factors, and what lies between them, within the range of float16
    return LowRankBranch((v * root / loudness[:, None]).contiguous(), (u * root).T.contiguous())


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular vectors and values of a matrix: `u` [rows, rank], `s` [rank] and `v` [columns, rank].

    By subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4): a whole decomposition of a large layer would take
    minutes.
    """
    width = min(rank + OVERSAMPLING, *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0))
    for _ in range(ITERATIONS):
        range_of = torch.linalg.qr(matrix @ basis).Q
        basis = torch.linalg.qr(matrix.T @ range_of).Q
    u, s, vt = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return u[:, :rank], s[:rank], (basis @ vt.T)[:, :rank]


class LowRankBranches:
    """The branches of a network's layers, each found once.

    Args:
        network: full-precision network.
        seen: observations of the layers' inputs at all steps, by `<layer>.output`; see `calib.quantizers.observers`.
    """

    def __init__(self, network: nn.Module, seen: Mapping[str, ObservedActivations]) -> None:
        self._network, self._seen = network, seen
        self._found: dict[tuple[str, int], LowRankBranch] = {}

    def of(self, name: str, rank: int) -> LowRankBranch:
        """Return the branch of a layer."""
        if (name, rank) not in self._found:
            weight = self._network.get_submodule(name).get_parameter("weight")
            self._found[name, rank] = low_rank_branch(weight, rank, self._seen[f"{name}.output"].rows)
        return self._found[name, rank]
