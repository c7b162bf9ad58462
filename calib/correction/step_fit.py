"""Everything that a schedule holds for one precision at one step, fitted from moments: affine correction and calibrated noise."""

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
        variance: calibrate the fresh noise ("schedule"), and also take what it could not absorb as a higher noise level of the next state
            ("shift", see `calib.correction.level_shift`), or keep the sampler's noise.
        parts: of the affine correction; fewer than both are for ablations.
    """

    mode: Mode = "joint"
    variance: Variance = "schedule"
    parts: frozenset[Part] = BOTH_PARTS


@dataclass(frozen=True, eq=False)
class StepCorrection:
    """The correction of one precision at one step; the fields of the schedule contract."""

    affine: Affine
    sigma_corrected: float
    residual_variance: float
    unabsorbed_variance: float


def is_linear(step: TableStep) -> bool:
    """Whether the step is `A x + B e` and no more. Clipping acts through the predictions, so it too needs history coefficients."""
    return not any(step.history_coeffs)


def fit_step(
    moments: Moments, step: TableStep, choice: CorrectionChoice, measure: Callable[[Affine], float] | None = None
) -> StepCorrection:
    """Fits the correction of a step.

    Args:
        moments: of `x, e, d` after guidance.
        step: the sampler's coefficients.
        choice: what to correct.
        measure: the excess variance of the whole step under a correction; needed where `is_linear` is false.
    """
    affine = fit_correction(moments, choice.mode, choice.parts)
    v = residual_variance(moments, affine)
    if is_linear(step):
        excess = _linear_excess(moments, affine, step, choice.mode)
    elif measure is not None:
        excess = measure(affine)
    else:
        raise ValueError("the variance of a step with clipping or history is not in the moments: it has to be measured")
    calibrated = (keep_sigma if choice.variance == "none" else calibrate_sigma)(step.sigma, excess)
    return StepCorrection(affine, calibrated.sigma_corrected, v, calibrated.unabsorbed_variance)


def _linear_excess(moments: Moments, affine: Affine, step: TableStep, mode: Mode) -> float:
    if mode == "ptqd":
        return short_form_excess(step.out_coeff, residual_variance(moments, affine))
    return excess_variance(moments, affine, step.x_coeff, step.out_coeff)
