"""The Frechet distance between normal distributions (Dowson and Landau 1982), which FID applies to features (Heusel et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engines.arrays import Float64


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution of D dimensions, float64: `mean` [D] and `covariance` [D, D]. The covariance may be singular."""

    mean: Float64
    covariance: Float64

    @cached_property
    def root(self) -> Float64:
        """Symmetric square root [D, D] of the covariance."""
        eigenvalues, vectors = np.linalg.eigh(self.covariance)
        return np.asarray((vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)`, the squared distance, as FID does.

    The matrix under the outer root is symmetric and positive semi-definite whatever the ranks of S1 and S2. The trace of its root is the
    sum of the roots of its eigenvalues, without complex numbers or regularization. The root of `other` is cached: pass the reference there.
    """
    m1, S1 = one.mean, one.covariance
    m2, S2 = other.mean, other.covariance
    product = other.root @ S1 @ other.root
    trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(S1) + np.trace(S2) - 2 * trace_of_root)
