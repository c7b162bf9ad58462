"""Quantiles of the beta distribution that `use_beta_sigmas` spaces noise levels by: Lee et al. 2024, arXiv 2407.12173.

The run time is installed without SciPy, whose `scipy.stats.beta.ppf` these are.
"""

from __future__ import annotations

import math

import numpy as np

from engines.arrays import Float64

_SHAPE = 0.6
"""Both parameters of the distribution, which is therefore symmetric."""

_TERMS = 60
"""Terms of the series below a half, where each is less than half of the one before."""

_HALVINGS = 60


def beta_quantiles(p: Float64) -> Float64:
    """Return the quantiles, within [0, 1], of probabilities [S] of the symmetric beta distribution with parameters 0.6."""
    tail = np.minimum(p, 1 - p)
    below = _bisected(tail)
    return np.where(p <= 0.5, below, 1 - below)


def _bisected(p: Float64) -> Float64:
    """Return the quantiles of probabilities up to a half."""
    low, high = np.zeros_like(p), np.full_like(p, 0.5)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _probability(middle) > p
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(p <= 0, 0.0, high)


def _probability(x: Float64) -> Float64:
    """`I_x(a, a)` for x up to a half, by the series `x^a / B(a, a) sum_n (1 - a)_n x^n / (n! (a + n))`; DLMF 8.17.7."""
    total, factor = np.zeros_like(x), np.ones_like(x)
    for n in range(_TERMS):
        total += factor / (_SHAPE + n)
        factor = factor * (1 - _SHAPE + n) * x / (n + 1)
    return x**_SHAPE * total * math.gamma(2 * _SHAPE) / math.gamma(_SHAPE) ** 2
