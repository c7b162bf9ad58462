"""Streaming mean and covariance of vectors. Memory does not grow with the number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.metrics.frechet import Gaussian
from engines.arrays import Float64


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """First and second moments of vectors of D dimensions, in float64. They can be merged (Chan, Golub and LeVeque 1979).

    Attributes:
        count: number of vectors.
        mean: [D] mean.
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
        """Return the moments of vectors [n, D], n at least 1."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        deviations = vectors - mean
        return cls(len(vectors), mean, deviations.T @ deviations)

    def add(self, vectors: NDArray[np.floating[Any]]) -> FeatureStatistics:
        """Return the moments with vectors [n, D] added."""
        return self.merge(FeatureStatistics.of(vectors))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the moments of both sets of vectors, exact up to rounding."""
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        between = self.count * share * np.outer(delta, delta)
        return FeatureStatistics(count, self.mean + share * delta, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float64:
        """[D, D] covariance, divided by the count minus one as in `numpy.cov` and the usual FID programs."""
        return self.scatter / max(self.count - 1, 1)

    def gaussian(self) -> Gaussian:
        """Return the normal distribution with these moments."""
        return Gaussian(self.mean, self.covariance)
