"""Fits everything that a schedule stores for one precision at one step: the affine correction and the calibrated noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
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
    """Fit the correction of a step; see `fit_proposals`."""
    return fit_proposals(moments, step, [choice], measure)[choice]


def fit_proposals(
    moments: Moments, step: TableStep, choices: Iterable[CorrectionChoice], measure: Callable[[Affine], float] | None = None
) -> dict[CorrectionChoice, StepCorrection]:
    """Fit several corrections of a step. Those that differ in the variance alone are fitted and measured once.

    Args:
        moments: moments of `x, e, d` after guidance.
        step: the sampler's coefficients.
        choices: what to correct.
        measure: returns the excess variance of the whole step under a correction; required if `is_linear` is false.
    """
    ordered = sorted(choices, key=_affine_of)
    return {choice: fitted for _, same in groupby(ordered, _affine_of) for choice, fitted in _fit(moments, step, [*same], measure)}


def _affine_of(choice: CorrectionChoice) -> tuple[Mode, list[Part]]:
    """What decides the affine correction."""
    return choice.mode, sorted(choice.parts)


def _fit(
    moments: Moments, step: TableStep, choices: Sequence[CorrectionChoice], measure: Callable[[Affine], float] | None
) -> Iterator[tuple[CorrectionChoice, StepCorrection]]:
    """Fit choices that differ in the variance alone."""
    mode, parts = choices[0].mode, choices[0].parts
    affine = fit_correction(moments, mode, parts)
    v = residual_variance(moments, affine)
    if is_linear(step):
        excess = _linear_excess(moments, affine, step, mode)
    elif measure is not None:
        excess = measure(affine)
    else:
        raise ValueError("the moments do not determine the variance of a step with clipping or history: it must be measured")
    for choice in choices:
        calibrated = (keep_sigma if choice.variance == "none" else calibrate_sigma)(step.sigma, excess)
        yield choice, StepCorrection(affine, calibrated.sigma_corrected, v, calibrated.unabsorbed_variance)


def _linear_excess(moments: Moments, affine: Affine, step: TableStep, mode: Mode) -> float:
    if mode == "ptqd":
        return short_form_excess(step.out_coeff, residual_variance(moments, affine))
    return excess_variance(moments, affine, step.x_coeff, step.out_coeff)
