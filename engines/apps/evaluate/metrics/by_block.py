"""Sums kept separately for each block of samples, so that any block can be left out of a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate


class Sums(Protocol):
    """Sums over samples. The sums of two sets of samples can be merged into the sums of both."""

    def merge(self, other: Self) -> Self: ...


S = TypeVar("S", bound=Sums)


class ByBlock(Generic[S]):
    """Sums of every block. `blocks` holds the sums by block number, for the blocks that have samples."""

    def __init__(self) -> None:
        self.blocks: dict[int, S] = {}

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
