"""Moments of a step's mean: as full precision takes it, what quantization changes in it, and the predicted noise.

Every rule for the variance of a step reads these moments. For `A x + B e'` they follow from the moments of `x, e, d`; for a step with a
history of predictions, or with clipping, the walk measures them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from engines.samplers.table import TableStep

STEP_CHANGE = ("mean", "change", "noise")
"""The next state's mean with `e`, the change of that mean when `e'` replaces `e`, and `eps' = R x + T e'`."""


def step_change(moments: Moments, affine: Affine, step: TableStep) -> Moments:
    """Return the moments of `STEP_CHANGE` of a step `A x + B e'`, from the moments of `x, e, d`."""
    A, B, (R, T) = step.x_coeff, step.out_coeff, step.epsilon_coeffs
    of_mean = np.tile([A, B, 0.0], (moments.channels, 1))
    of_noise = np.stack([R + T * affine.state_gain, T * affine.gain, T * affine.gain], axis=1)
    projected = moments.project(np.stack([of_mean, B * affine.error_weights, of_noise], axis=1), STEP_CHANGE)
    return replace(projected, mean=projected.mean + np.outer(affine.offset, [0.0, B, T]))


def measured_excess(change: Moments) -> float:
    """Variance that quantization adds to the step: `Var(y + c) - Var(y)` of the mean `y` and its change `c`.

    Computed as `Cov(c, 2 y + c)`, because at 8 bits the difference is a small fraction of either variance.
    """
    return float(np.mean(2 * change.covariance("mean", "change") + change.variance("change")))
