"""Fits the paper's split of the quantization noise, `d = k e + r` (PTQD, arXiv 2305.10657, section 3.2), from moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calib.correction.moments import Moments
from engines.arrays import Float64


@dataclass(frozen=True, eq=False)
class NoiseFit:
    """The split at one step and precision, as reported in the statistics.

    Attributes:
        k: least-squares slope of `d` on `e` over all pixels and channels, after removing each channel's own means. (The model has a mean
            `mu_c` per channel. If it were not removed, differences between channels would count as correlation.)
        k_standard_error: standard error of `k` from the spread between folds; infinite with fewer than two folds.
        k_channel: [C] slope within each channel.
        mu: [C] mean of `r = d - k e`.
        s2: variance of `r - mu_c`, pooled over channels.
        r2: share of the variance of `d` within channels that `k e` explains.
        snr_db: `10 log10(E[e^2] / E[d^2])`; infinite if nothing was quantized.
        n: number of samples seen.
    """

    k: float
    k_standard_error: float
    k_channel: Float64
    mu: Float64
    s2: float
    r2: float
    snr_db: float
    n: int


def fit_noise(moments: Moments, clamp: bool = False) -> NoiseFit:
    """Splits `d`, given the moments of `x, e, d`. With `clamp`, negative k become 0 (as in the paper) before the rest is computed."""
    var_e, var_d, cov_de = moments.variance("e"), moments.variance("d"), moments.covariance("d", "e")
    k_channel, k = ratio(cov_de, var_e), pooled_slope(moments)
    if clamp:
        k_channel, k = np.maximum(k_channel, 0), max(k, 0.0)
    s2 = max(float(np.mean(var_d - 2 * k * cov_de + k**2 * var_e)), 0.0)
    return NoiseFit(
        k=k,
        k_standard_error=_pooled_standard_error(moments),
        k_channel=k_channel,
        mu=moments.mean_of("d") - k * moments.mean_of("e"),
        s2=s2,
        r2=1 - s2 / float(np.mean(var_d)) if var_d.any() else 0.0,
        snr_db=_snr_db(moments),
        n=int(moments.samples.sum()),
    )


def pooled_slope(moments: Moments) -> float:
    """`k = sum_c Cov_c(d, e) / sum_c Var_c(e)`."""
    return float(ratio(moments.covariance("d", "e").sum(), moments.variance("e").sum()))


def slope_variance(scores: Float64, weight: Float64) -> Float64:
    """Sampling variance of a slope from folds of dependent values (Liang and Zeger 1986, the cluster-robust estimate).

    A slope k solves `sum_f u_f = 0` with the scores `u_f = sum (e - E[e]) (d - E[d] - k (e - E[e]))` of the folds, so that

        Var(k) = F / (F - 1) sum_f u_f^2 / (sum of (e - E[e])^2)^2

    over the F non-empty folds.

    Args:
        scores: [F, ...] `u_f` of the non-empty folds.
        weight: [...] sum of squared deviations of `e` over all folds.
    """
    F = len(scores)
    if F < 2:
        return np.full(np.shape(weight), np.inf)
    return F / (F - 1) * ratio((scores**2).sum(axis=0), np.square(weight))


def fold_sums(moments: Moments) -> tuple[Float64, Float64]:
    """[F, C] sums of `(d - E[d]) (e - E[e])` and of `(e - E[e])^2` in each non-empty fold."""
    scatter = moments.about_pooled_mean()[moments.count > 0]
    e, d = moments.variables.index("e"), moments.variables.index("d")
    return scatter[:, :, d, e], scatter[:, :, e, e]


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Float64:
    """Elementwise quotient, 0 where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    quotient: Float64 = np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)
    return quotient


def _pooled_standard_error(moments: Moments) -> float:
    de, ee = (sums.sum(axis=1) for sums in fold_sums(moments))
    return float(np.sqrt(slope_variance(de - pooled_slope(moments) * ee, ee.sum())))


def _snr_db(moments: Moments) -> float:
    signal, noise = (float(np.mean(moments.variance(name) + moments.mean_of(name) ** 2)) for name in ("e", "d"))
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
