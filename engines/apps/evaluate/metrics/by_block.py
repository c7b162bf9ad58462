"""Sums kept separately for each block of samples, so that any block can be left out of a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate


class Sums(Protocol):
    """Sums over samples: a dataclass of numbers and arrays. The sums of two sets of samples can be merged into the sums of both."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def merge(self, other: Self) -> Self: ...


S = TypeVar("S", bound=Sums)


class ByBlock(Generic[S]):
    """Sums of every block. `blocks` holds the sums by block number, for the blocks that have samples.

    Args:
        kind: type of the sums.
    """

    def __init__(self, kind: type[S]) -> None:
        self._kind = kind
        self.blocks: dict[int, S] = {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the fields of all sums by `<block>.<field>`, to be stored in a file."""
        fields = [field.name for field in dataclasses.fields(self._kind)]
        return {f"{block}.{name}": np.asarray(getattr(sums, name)) for block, sums in self.blocks.items() for name in fields}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums that `arrays` returned."""
        found: dict[int, dict[str, Any]] = {}
        for key, array in arrays.items():
            block, _, name = key.partition(".")
            found.setdefault(int(block), {})[name] = array if array.ndim else array.item()
        self.blocks = {block: self._kind(**fields) for block, fields in found.items()}

    def add(self, block: int, more: S) -> None:
        """Add sums to a block."""
        self.blocks[block] = self.blocks[block].merge(more) if block in self.blocks else more

    def estimate(self, figure: Callable[[S], float]) -> Estimate:
        """Estimate a figure of all samples together. Every block must have samples."""
        without = (_merged(self.blocks[other] for other in range(BLOCKS) if other != block) for block in range(BLOCKS))
        return Estimate(figure(_merged(self.blocks.values())), np.array([figure(sums) for sums in without]))

    def mean(self, figure: Callable[[S], float]) -> Estimate:
        """Estimate the mean of the blocks' own figures."""
        return Estimate.mean_of_blocks(np.array([figure(self.blocks[block]) for block in range(BLOCKS)]), np.ones(BLOCKS))


def _merged(sums: Iterable[S]) -> S:
    return reduce(lambda one, other: one.merge(other), sums)
