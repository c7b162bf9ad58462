"""Changes of a weight that are stored as small matrices: LoRA (Hu et al. 2021), and LoHa and LoKr (Yeh et al. 2024, LyCORIS)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns], whole or in factors. Convolutions have their kernel among the columns.

    Attributes:
        left: [rows, p, 1...]; None if `right` is the whole matrix.
        mid: kernel between the factors [p, q, ...] (Tucker decomposition of a convolution), or None.
        right: [q, columns...].
    """

    left: Tensor | None
    mid: Tensor | None
    right: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str, core: str) -> Self:
        """Return a matrix that LyCORIS stored as `name`, or as `name_a` and `name_b`. Around a core, the first factor is transposed."""
        if name in tensors:
            return cls(None, None, tensors[name])
        left, mid = tensors[f"{name}_a"], tensors.get(core)
        return cls(left if mid is None else left.mT, mid, tensors[f"{name}_b"])

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None if the matrix is whole."""
        return None if self.left is None else self.right.shape[0]

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and columns; None if the factors do not fit each other."""
        tensors = [one for one in (self.left, self.mid, self.right) if one is not None]
        if any(one.ndim < 2 or one.numel() == 0 for one in tensors):
            return None
        if any(one.flatten(1).shape[1] != other.shape[0] for one, other in zip(self._inner, tensors[1:], strict=True)):
            return None
        kernel = 1 if self.mid is None else self.mid.shape[2:].numel()
        return tensors[0].shape[0], self.right[0].numel() * kernel

    @property
    def _inner(self) -> list[Tensor]:
        """All factors but the last, without their kernels."""
        mid = [] if self.mid is None else [self.mid.flatten(2)[..., 0] if self.mid.ndim > 2 else self.mid]
        return ([] if self.left is None else [self.left]) + mid

    def product(self) -> Tensor:
        """Return the matrix."""
        right = self.right.flatten(1).float()
        if self.left is None:
            return right
        left = self.left.flatten(1).float()
        return left @ right if self.mid is None else torch.einsum("op,pq...,qi->oi...", left, self.mid.float(), right).flatten(1)


@dataclass(frozen=True)
class LowRank:
    """A change of a weight [out, in, ...].

    Attributes:
        matrices: one matrix (LoRA) or two.
        combined: whether two are multiplied entry by entry (LoHa) or as Kronecker's product (LoKr).
        scale: `alpha / rank`, or `alpha / sqrt(rank)` if the rank is stabilized.
    """

    matrices: tuple[Matrix, ...]
    combined: Literal["entries", "kronecker"]
    scale: float

    @property
    def shapes(self) -> str:
        """The shapes, for error messages."""
        factors = ([one.left, one.mid, one.right] for one in self.matrices)
        return ", ".join(" times ".join(str(tuple(value.shape)) for value in one if value is not None) for one in factors)

    def fits(self, weight: Tensor) -> bool:
        """Return whether the shapes fit a weight."""
        shapes = [one.shape for one in self.matrices]
        found = [shape for shape in shapes if shape is not None]
        if len(found) < len(shapes) or (self.combined == "entries" and len(set(found)) > 1) or weight.ndim < 2:
            return False
        rows, columns = (math.prod(sizes) for sizes in zip(*found, strict=True)) if self.combined == "kronecker" else found[0]
        return (rows, columns) == (weight.shape[0], weight[0].numel())

    def delta(self, shape: torch.Size) -> Tensor:
        """Return the scaled change, shaped like the weight."""
        change, *rest = (one.product() for one in self.matrices)
        for other in rest:
            change = change * other if self.combined == "entries" else torch.kron(change, other)
        return self.scale * change.reshape(shape)
