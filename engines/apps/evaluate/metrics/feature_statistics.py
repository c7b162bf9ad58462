"""Mean and covariance of vectors, streamed: memory does not grow with the number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.metrics.frechet import Gaussian
from engines.arrays import Float64


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """First and second moments of vectors of D dimensions, in float64; they add (Chan, Golub and LeVeque 1979).

    Attributes:
        count: vectors seen.
        mean: [D].
        scatter: [D, D] sums of products of deviations from the mean.
    """

    count: int
    mean: Float64
    scatter: Float64

    @classmethod
    def empty(cls, dimension: int) -> FeatureStatistics:
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, vectors: NDArray[np.floating[Any]]) -> FeatureStatistics:
        """Of vectors [n, D], n at least 1."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        deviations = vectors - mean
        return cls(len(vectors), mean, deviations.T @ deviations)

    def add(self, vectors: NDArray[np.floating[Any]]) -> FeatureStatistics:
        """With vectors [n, D] more."""
        return self.merge(FeatureStatistics.of(vectors))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Of both sets of vectors, exact up to rounding."""
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        between = self.count * share * np.outer(delta, delta)
        return FeatureStatistics(count, self.mean + share * delta, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float64:
        """[D, D], divided by the count less one, as `numpy.cov` and the usual FID programs do."""
        return self.scatter / max(self.count - 1, 1)

    def gaussian(self) -> Gaussian:
        """The normal distribution of these moments."""
        return Gaussian(self.mean, self.covariance)
