"""Fits everything that a schedule stores for one precision at one step: the affine correction and the calibrated noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from calib.correction.correction_fit import BOTH_PARTS, Affine, Mode, Part, fit_correction, residual_variance
from calib.correction.moments import Moments
from calib.correction.variance import calibrate_sigma, excess_variance, keep_sigma, short_form_excess
from engines.samplers.table import TableStep

Variance: TypeAlias = Literal["schedule", "shift", "none"]


@dataclass(frozen=True)
class CorrectionChoice:
    """What to correct.

    Attributes:
        mode: how the affine correction is fitted.
        variance: "schedule" calibrates the fresh noise; "shift" also treats what the fresh noise could not absorb as a higher noise level
            of the next state (see `calib.correction.level_shift`); "none" keeps the sampler's noise.
        parts: parts of the affine correction to fit; fewer than both are for ablations.
    """

    mode: Mode = "joint"
    variance: Variance = "schedule"
    parts: frozenset[Part] = BOTH_PARTS


@dataclass(frozen=True, eq=False)
class StepCorrection:
    """The correction of one precision at one step, with the fields of the schedule contract."""

    affine: Affine
    sigma_corrected: float
    residual_variance: float
    unabsorbed_variance: float


def is_linear(step: TableStep) -> bool:
    """Whether the step is just `A x + B e`. Clipping acts on the predictions, so a clipped step has history coefficients too."""
    return not any(step.history_coeffs)


def fit_step(
    moments: Moments, step: TableStep, choice: CorrectionChoice, measure: Callable[[Affine], float] | None = None
) -> StepCorrection:
    """Fit the correction of a step.

    Args:
        moments: moments of `x, e, d` after guidance.
        step: the sampler's coefficients.
        choice: what to correct.
        measure: returns the excess variance of the whole step under a correction; required if `is_linear` is false.
    """
    affine = fit_correction(moments, choice.mode, choice.parts)
    v = residual_variance(moments, affine)
    if is_linear(step):
        excess = _linear_excess(moments, affine, step, choice.mode)
    elif measure is not None:
        excess = measure(affine)
    else:
        raise ValueError("the moments do not determine the variance of a step with clipping or history: it must be measured")
    calibrated = (keep_sigma if choice.variance == "none" else calibrate_sigma)(step.sigma, excess)
    return StepCorrection(affine, calibrated.sigma_corrected, v, calibrated.unabsorbed_variance)


def _linear_excess(moments: Moments, affine: Affine, step: TableStep, mode: Mode) -> float:
    if mode == "ptqd":
        return short_form_excess(step.out_coeff, residual_variance(moments, affine))
    return excess_variance(moments, affine, step.x_coeff, step.out_coeff)
