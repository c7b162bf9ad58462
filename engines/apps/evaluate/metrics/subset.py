"""A bounded choice of vectors out of a stream of known length, always the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32


class Subset:
    """Takes `limit` of `num` vectors, spread evenly; all of them where there are no more.

    Args:
        num: vectors that will be added.
        limit: vectors that are kept at most.
    """

    def __init__(self, num: int, limit: int) -> None:
        self._num = num
        self._limit = min(num, limit)
        self._seen = 0
        self._kept: list[Float32] = []

    def add(self, vectors: NDArray[np.floating[Any]]) -> None:
        """Take the next [n, D] of the stream."""
        positions = np.arange(self._seen, self._seen + len(vectors))
        self._seen += len(vectors)
        chosen = (positions + 1) * self._limit // self._num > positions * self._limit // self._num
        self._kept.append(vectors[chosen].astype(np.float32, copy=False))

    def kept_before(self, position: int) -> int:
        """How many of the first `position` vectors are kept."""
        return position * self._limit // self._num

    def vectors(self) -> Float32:
        """[limit, D], in the order of the stream."""
        return np.concatenate(self._kept)
