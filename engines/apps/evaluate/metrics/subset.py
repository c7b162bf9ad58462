"""A bounded, deterministic choice of vectors from a stream of known length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32


class Subset:
    """Keeps `limit` of `num` vectors, spread evenly, or all of them if there are no more than `limit`.

    Args:
        num: number of vectors that will be added.
        limit: maximum number of vectors to keep.
    """

    def __init__(self, num: int, limit: int) -> None:
        self._num = num
        self._limit = min(num, limit)
        self._seen = 0
        self._kept: list[Float32] = []

    def add(self, vectors: NDArray[np.floating[Any]]) -> None:
        """Add the next vectors [n, D] of the stream."""
        positions = np.arange(self._seen, self._seen + len(vectors))
        self._seen += len(vectors)
        chosen = (positions + 1) * self._limit // self._num > positions * self._limit // self._num
        self._kept.append(vectors[chosen].astype(np.float32, copy=False))

    @property
    def seen(self) -> int:
        """Number of vectors that were added."""
        return self._seen

    def restore(self, seen: int, vectors: Float32) -> None:
        """Take the vectors [n, D] that were kept of the first `seen`."""
        self._seen, self._kept = seen, [vectors]

    def kept_before(self, position: int) -> int:
        """Return how many of the first `position` vectors are kept."""
        return position * self._limit // self._num

    def vectors(self) -> Float32:
        """Return the kept vectors [limit, D] in stream order."""
        return np.concatenate(self._kept)
