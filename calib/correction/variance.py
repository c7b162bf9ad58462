"""Calibrates the variance schedule: the step's fresh noise gives up exactly the variance that quantization added.

"Variance" means the variance within each channel, over samples and pixels, averaged over channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from engines.arrays import Float64

STEP_CHANGE = ("mean", "change")


@dataclass(frozen=True)
class CalibratedSigma:
    """The fresh noise of a step.

    Attributes:
        sigma_corrected: standard deviation to use in place of the sampler's.
        excess: variance that quantization adds to the step; negative if quantization reduces the variance.
        unabsorbed_variance: part of a positive excess that the noise could not give up, so the next state keeps it.
    """

    sigma_corrected: float
    excess: float
    unabsorbed_variance: float


def calibrate_sigma(sigma: float, excess: float) -> CalibratedSigma:
    """`sigma'^2 = max(sigma^2 - excess, 0)`, at most `sigma^2`. One of the three functions below gives the excess.

    Noise is only removed, never added. If coarse quantization leaves a step with too little variance, the missing part has the structure
    of the image. White noise in its place would restore the variance of a pixel but show as grain.
    """
    corrected = min(math.sqrt(max(sigma**2 - excess, 0.0)), sigma)
    return CalibratedSigma(corrected, excess, max(excess - sigma**2, 0.0))


def keep_sigma(sigma: float, excess: float) -> CalibratedSigma:
    """Keep the sampler's own noise, for a schedule that is not calibrated. Nothing is absorbed."""
    return CalibratedSigma(sigma, excess, max(excess, 0.0))


def short_form_excess(B: float, residual_variance: float) -> float:
    """The paper's `B^2 v`, valid if the residual is uncorrelated with `x` and `e`. `B` belongs to the original sigma."""
    return B**2 * residual_variance


def step_variance(moments: Moments, affine: Affine | None, A: float, B: float) -> float:
    """`Var(A x + B e')`, or `Var(A x + B e)` without a correction, from the moments of `x, e, d`."""
    weights = _reference_weights(moments, A, B) if affine is None else _corrected_weights(affine, A, B)
    return _mean_covariance(moments, weights, weights)


def excess_variance(moments: Moments, affine: Affine, A: float, B: float) -> float:
    """`Var(A x + B e') - Var(A x + B e)`, from the moments of `x, e, d`.

    Computed as `Cov(s' - s, s' + s)` of the two steps, because at 8 bits the difference is a small fraction of either variance.
    """
    corrected, reference = _corrected_weights(affine, A, B), _reference_weights(moments, A, B)
    return _mean_covariance(moments, corrected - reference, corrected + reference)


def measured_excess(moments: Moments) -> float:
    """Excess variance of a step that is not linear in `x` and `e` (clipping, history).

    Takes moments of `STEP_CHANGE`: the mean of the next state with `e`, and the change of that mean when `e'` replaces `e`.
    """
    return float(np.mean(2 * moments.covariance("mean", "change") + moments.variance("change")))


def _reference_weights(moments: Moments, A: float, B: float) -> Float64:
    """[C, 3] weights of `x, e, d` in `A x + B e`."""
    return np.tile([A, B, 0.0], (moments.channels, 1))


def _corrected_weights(affine: Affine, A: float, B: float) -> Float64:
    """[C, 3] weights of `x, e, d` in `A x + B (gain (e + d) + state_gain x)`."""
    return np.stack([A + B * affine.state_gain, B * affine.gain, B * affine.gain], axis=1)


def _mean_covariance(moments: Moments, one: Float64, other: Float64) -> float:
    """Covariance of two combinations [C, V] of the variables, averaged over channels."""
    return float(np.mean(np.einsum("ci,cij,cj->c", one, moments.covariance_matrix(), other)))
