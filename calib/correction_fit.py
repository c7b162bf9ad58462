"""The affine correction `e' = gain_c q + offset_c` of every mode, fitted from moments of `x, e, d`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from calib.moments import Moments
from calib.noise_fit import fit_noise
from calib.signed_gain import signed_gain
from engines.arrays import Float32, Float64
from engines.correction import correct

Mode: TypeAlias = Literal["none", "ptqd", "signed", "mmse"]
Part: TypeAlias = Literal["gain", "offset"]
BOTH_PARTS: frozenset[Part] = frozenset(("gain", "offset"))


@dataclass(frozen=True, eq=False)
class Affine:
    """`e' = gain q + offset`; both [C] float64."""

    gain: Float64
    offset: Float64

    @classmethod
    def identity(cls, channels: int) -> Affine:
        return cls(np.ones(channels), np.zeros(channels))

    def apply(self, out: Float32) -> Float32:
        """Corrects guided outputs [batch, channels, ...], in float32."""
        return correct(out, self.gain, self.offset)


def fit_correction(moments: Moments, mode: Mode, parts: Collection[Part] = BOTH_PARTS) -> Affine:
    """The correction of a mode, from the moments of `x, e, d`.

    The modes differ in the gain alone. The offset, `-mu_c gain_c` in the paper's terms, is in all of them the one that leaves no mean
    error in any channel, for the gain that is applied: without the part "gain" the correction is `q - E[d]`. It has no gate as the gain of
    `signed` has: the mean over n samples is wrong by at most the n-th part of the squared error that their own means make anyway.
    """
    if mode == "none":
        return Affine.identity(moments.channels)
    gain = _GAINS[mode](moments) if "gain" in parts else np.ones(moments.channels)
    offset = (1 - gain) * moments.mean_of("e") - gain * moments.mean_of("d")
    return Affine(gain, offset if "offset" in parts else np.zeros_like(gain))


def residual_mean(moments: Moments, affine: Affine) -> Float64:
    """[C] mean of `e' - e = (gain - 1) e + gain d + offset`."""
    return (affine.gain - 1) * moments.mean_of("e") + affine.gain * moments.mean_of("d") + affine.offset


def residual_variance(moments: Moments, affine: Affine) -> float:
    """`v`: variance of `e' - e` about its mean in each channel, averaged over channels."""
    weight_e, weight_d = affine.gain - 1, affine.gain
    var_e, var_d, cov_ed = moments.variance("e"), moments.variance("d"), moments.covariance("e", "d")
    return max(float(np.mean(weight_e**2 * var_e + 2 * weight_e * weight_d * cov_ed + weight_d**2 * var_d)), 0.0)


def _paper_gain(moments: Moments) -> Float64:
    """`1 / (1 + k+)`, one scalar for all channels."""
    return np.full(moments.channels, 1 / (1 + fit_noise(moments, clamp=True).k))


def _regression_gain(moments: Moments) -> Float64:
    """`Cov(e, q) / Var(q)` with `q = e + d`; 1 for a channel whose output is constant, where any gain gives the same `e'`."""
    var_e, var_d, cov_ed = moments.variance("e"), moments.variance("d"), moments.covariance("e", "d")
    var_q = var_e + 2 * cov_ed + var_d
    return np.divide(var_e + cov_ed, var_q, out=np.ones_like(var_q), where=var_q > 0)


_GAINS: Mapping[Mode, Callable[[Moments], Float64]] = {"ptqd": _paper_gain, "signed": signed_gain, "mmse": _regression_gain}
