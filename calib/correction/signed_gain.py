"""Gain of the `signed` correction: a slope of either sign per channel, used only where it helps folds that were left out of the fit.

Clamping k at 0 discards the negative k that theory and measurements show at low bit widths. But inverting a slope that is only noise does
harm where R^2 is low. Two guards prevent this, shrinkage and a gate. Both rely on the spread between folds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calib.correction.held_out import borne_out, held_out_square
from calib.correction.moments import Moments
from calib.correction.noise_fit import fold_sums, pooled_slope, ratio, slope_variance
from engines.arrays import Float64

# Below this value of 1 + k the output hardly depends on e, and rounding decides the inverse.
LEAST_SIGNAL = 1e-3


def signed_gain(moments: Moments) -> Float64:
    """[C] `1 / (1 + k_c)` with shrunken slopes, or exactly 1 where that does not help held-out folds."""
    return np.where(_gain_helps(moments), _inverse(shrunken_slopes(moments)), 1.0)


def shrunken_slopes(moments: Moments) -> Float64:
    """[C] per-channel slopes drawn towards the pooled slope to the degree that sampling errors explain their spread (empirical Bayes).

    With `V_c` the sampling variance of `k_c` from the folds and `p_c` the channel's share of the variance of `e` (so that the pooled
    slope is `k = sum p_c k_c`), the variance of the true slopes between channels follows by the method of moments, and

        tau^2 = max(sum p_c (k_c - k)^2 - sum p_c (1 - p_c) V_c, 0) / sum p_c (1 - p_c)
        k_c  <- k + tau^2 / (tau^2 + V_c) (k_c - k)

    With one channel, or too few folds to know `V_c`, this is the pooled slope.
    """
    de, ee = fold_sums(moments)
    k, k_c = pooled_slope(moments), ratio(de.sum(axis=0), ee.sum(axis=0))
    V = slope_variance(de - k_c * ee, ee.sum(axis=0))
    if not np.isfinite(V).all():
        return np.full(moments.channels, k)
    p = ratio(ee.sum(axis=0), ee.sum())
    between = np.sum(p * (k_c - k) ** 2) - np.sum(p * (1 - p) * V)
    tau2 = ratio(max(between, 0.0), np.sum(p * (1 - p)))
    return k + ratio(tau2, tau2 + V) * (k_c - k)


def _gain_helps(moments: Moments) -> NDArray[np.bool_]:
    """[C] whether held-out folds confirm the fit: the slope predicts their `d`, and `e'` is closer to `e` than without the gain.

    The first condition alone would invert negative slopes that hardly matter, and so amplify the residual by more than it removes. The
    second alone would accept any positive slope, even a chance one, because a gain below 1 shrinks the residual too.
    """
    folds = np.flatnonzero(moments.count)
    if len(folds) < 2:
        return np.zeros(moments.channels, bool)
    improvements = [_held_out_improvements(moments, int(fold)) for fold in folds]
    explained, corrected = (np.stack(of_folds) for of_folds in zip(*improvements, strict=True))
    helps: NDArray[np.bool_] = borne_out(explained) & (corrected.sum(axis=0) > 0)
    return helps


def _held_out_improvements(moments: Moments, fold: int) -> tuple[Float64, Float64]:
    """[C] decrease of two sums of squares on a fold, `(d - k e - mu)^2` and `(e' - e)^2`, when the slope of the other folds replaces 0."""
    rest, held = moments.leave_out(fold), moments.only(fold)
    k = shrunken_slopes(rest)
    gain = _inverse(k)
    one = np.ones_like(k)
    without = held_out_square(rest, held, _weights(0 * one, one))
    explained = without - held_out_square(rest, held, _weights(-k, one))
    corrected = without - held_out_square(rest, held, _weights(gain - 1, gain))
    return held.count * explained, held.count * corrected


def _weights(of_e: Float64, of_d: Float64) -> Float64:
    """[C, 3] weights of `x, e, d`."""
    return np.stack([np.zeros_like(of_e), of_e, of_d], axis=1)


def _inverse(slopes: Float64) -> Float64:
    return np.divide(1.0, 1 + slopes, out=np.ones_like(slopes), where=1 + slopes > LEAST_SIGNAL)
