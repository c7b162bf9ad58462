"""The Inception Score (Salimans et al. 2016) of any classifier's logits. It rewards sharp predictions that are spread over the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float64


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of the predictions `p(y|x)` of one split over K classes.

    Attributes:
        count: number of samples.
        probability: [K] sum of `p`.
        negative_entropy: sum of `sum_y p log p`.
    """

    count: int
    probability: Float64
    negative_entropy: float

    @classmethod
    def of(cls, logits: NDArray[np.floating[Any]]) -> ClassSums:
        """Return the sums for logits [n, K]."""
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        return cls(len(p), p.sum(axis=0), float((p * log_p).sum()))

    def merge(self, other: ClassSums) -> ClassSums:
        """Return the sums over both sets of samples."""
        return ClassSums(self.count + other.count, self.probability + other.probability, self.negative_entropy + other.negative_entropy)

    def score(self) -> float:
        """Return `exp E KL(p(y|x) || p(y))`, between 1 and K."""
        marginal = self.probability / self.count
        entropy = -float((marginal * np.log(marginal, where=marginal > 0, out=np.zeros_like(marginal))).sum())
        return float(np.exp(self.negative_entropy / self.count + entropy))
