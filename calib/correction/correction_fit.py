"""Fits the affine correction `e' = gain_c q + offset_c + state_gain_c x` of every mode from the moments of `x, e, d`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from calib.correction.bounded_gain import bounded_gains
from calib.correction.joint_gain import joint_gains
from calib.correction.moments import PLAIN, Moments
from calib.correction.noise_fit import fit_noise
from calib.correction.signed_gain import signed_gain
from engines.arrays import Float64

Mode: TypeAlias = Literal["none", "ptqd", "signed", "bounded", "joint", "mmse"]
Part: TypeAlias = Literal["gain", "offset", "chain"]
BOTH_PARTS: frozenset[Part] = frozenset(("gain", "offset"))


@dataclass(frozen=True, eq=False)
class Affine:
    """Affine correction `e' = gain q + offset + state_gain x`. All fields are [C] float64."""

    gain: Float64
    offset: Float64
    state_gain: Float64

    @classmethod
    def identity(cls, channels: int) -> Affine:
        return cls(np.ones(channels), np.zeros(channels), np.zeros(channels))

    @property
    def error_weights(self) -> Float64:
        """[C, 3] weights of `x, e, d` in `e' - e`, without the offset."""
        return np.stack([self.state_gain, self.gain - 1, self.gain], axis=1)


def fit_correction(moments: Moments, mode: Mode, parts: Collection[Part] = BOTH_PARTS, steps_left: int = 1) -> Affine:
    """Return the correction of a mode, fitted from the moments of `x, e, d` at a step with `steps_left` steps to the end, itself included.

    The modes differ only in their gains. In every mode, the offset (`-mu_c gain_c` in the paper's terms) is the one that leaves no mean
    error in any channel with the gains that are applied. Without the part "gain" the correction is `q - E[d]`. The offset needs no gate
    like the gain of `signed`: a mean over n samples adds at most 1/n of the squared error that the samples' own means cause anyway.
    """
    if mode == "none":
        return Affine.identity(moments.channels)
    bare = Affine.identity(moments.channels)
    if "gain" in parts:
        gain, state_gain = _GAINS[mode](moments, steps_left)
        bare = Affine(gain, np.zeros_like(gain), state_gain)
    return replace(bare, offset=-residual_mean(moments, bare)) if "offset" in parts else bare


def residual_mean(moments: Moments, affine: Affine) -> Float64:
    """[C] mean of `e' - e = state_gain x + (gain - 1) e + gain d + offset`."""
    means = np.stack([moments.mean_of(variable) for variable in PLAIN], axis=1)
    mean: Float64 = (affine.error_weights * means).sum(axis=1) + affine.offset
    return mean


def residual_variance(moments: Moments, affine: Affine) -> float:
    """`v`: variance of `e' - e` about its mean in each channel, averaged over channels."""
    weights = affine.error_weights
    return max(float(np.mean(np.einsum("ci,cij,cj->c", weights, moments.covariance_matrix(), weights))), 0.0)


def _paper_gain(moments: Moments) -> Float64:
    """`1 / (1 + k+)`, one scalar for all channels."""
    return np.full(moments.channels, 1 / (1 + fit_noise(moments, clamp=True).k))


def _regression_gain(moments: Moments) -> Float64:
    """`Cov(e, q) / Var(q)` with `q = e + d`; 1 for a channel whose output is constant, where any gain gives the same `e'`."""
    var_e, var_d, cov_ed = moments.variance("e"), moments.variance("d"), moments.covariance("e", "d")
    var_q = var_e + 2 * cov_ed + var_d
    return np.divide(var_e + cov_ed, var_q, out=np.ones_like(var_q), where=var_q > 0)


def _without_state(gain_of: Callable[[Moments], Float64]) -> Callable[[Moments, int], tuple[Float64, Float64]]:
    """Add a state gain of 0 to a gain that is the same at every step."""
    return lambda moments, _steps_left: (gain_of(moments), np.zeros(moments.channels))


_GAINS: Mapping[Mode, Callable[[Moments, int], tuple[Float64, Float64]]] = {
    "ptqd": _without_state(_paper_gain),
    "signed": _without_state(signed_gain),
    "bounded": bounded_gains,
    "joint": lambda moments, _steps_left: joint_gains(moments),
    "mmse": _without_state(_regression_gain),
}
