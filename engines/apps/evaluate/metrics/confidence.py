"""Confidence intervals of figures: the jackknife over blocks of samples, and the spread over seeds.

Every figure is computed with all samples of a seed, and again with each of ten blocks left out (Quenouille 1956, Tukey 1958). The chains
share their noise, so their figures move together, and the jackknife of their difference is far narrower than that of either figure. For
the difference one seed therefore suffices, where a test over seeds alone would need many.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator

from engines.arrays import Float64

BLOCKS = 10
"""Number of blocks. Each consists of consecutive samples, so that classes taken in turn are balanced within it."""

Value = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""A figure. Infinity, which JSON lacks, is null in files."""

_NORMAL_975 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure of one seed.

    Attributes:
        value: figure of all samples.
        without_block: [BLOCKS] figure with each block left out.
    """

    value: float
    without_block: Float64

    @classmethod
    def mean_of_blocks(cls, sums: Float64, counts: Float64) -> Estimate:
        """Estimate a figure that is a mean over samples from its sums [BLOCKS] and counts [BLOCKS] by block."""
        return cls(float(sums.sum() / counts.sum()), (sums.sum() - sums) / (counts.sum() - counts))

    def __sub__(self, other: Estimate) -> Estimate:
        """Return the paired difference of two chains that share their noise."""
        return Estimate(self.value - other.value, self.without_block - other.without_block)

    @property
    def variance(self) -> float:
        """Jackknife variance of `value`; NaN if the figure is infinite for all samples or without a block."""
        if not (math.isfinite(self.value) and np.isfinite(self.without_block).all()):
            return math.nan
        return (BLOCKS - 1) * float(self.without_block.var())


@dataclass(frozen=True)
class Summary:
    """A figure over all seeds.

    Attributes:
        mean: mean over the seeds.
        deviation: standard deviation over the seeds; None if there is only one, or a figure is infinite.
        interval: 95 % confidence interval of the mean; None if the figure of a seed is infinite, with all samples or without some.
        values: figure by seed.
    """

    mean: Value
    deviation: float | None
    interval: tuple[float, float] | None
    values: tuple[Value, ...]


def summarize(estimates: Sequence[Estimate], mean_of: Callable[[Sequence[float]], float] = statistics.fmean) -> Summary:
    """Summarize a figure over seeds. The half width is `t sqrt(mean jackknife variance / seeds)`, with 9 degrees of freedom per seed."""
    values = tuple(estimate.value for estimate in estimates)
    mean, seeds = mean_of(values), len(values)
    variance = statistics.fmean(estimate.variance for estimate in estimates) / seeds
    half_width = student_t_975(seeds * (BLOCKS - 1)) * math.sqrt(variance)
    deviation = statistics.stdev(values) if seeds > 1 and all(map(math.isfinite, values)) else None
    return Summary(mean, deviation, (mean - half_width, mean + half_width) if math.isfinite(half_width) else None, values)


def student_t_975(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5), accurate to 1e-4 for 9 or more degrees of freedom."""
    x, v = _NORMAL_975, degrees
    terms: tuple[float, ...] = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + math.fsum(term / v**power for power, term in enumerate(terms, start=1))


def block_edges(num: int) -> list[int]:
    """Return where blocks 1, 2, ... begin among `num` samples."""
    return [block * num // BLOCKS for block in range(1, BLOCKS)]
