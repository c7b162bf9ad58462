"""Fits everything that a schedule stores for one precision at one step: the affine correction and the calibrated noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from calib.correction.correction_fit import BOTH_PARTS, Affine, Mode, Part, fit_correction, residual_variance
from calib.correction.drift import excess_without, matched_share, q_drift_share, without_noise
from calib.correction.moments import Moments
from calib.correction.step_change import measured_excess, step_change
from calib.correction.variance import calibrate_sigma, keep_sigma, short_form_excess
from engines.samplers.table import TableStep

Variance: TypeAlias = Literal["schedule", "drift", "q-drift", "shift", "none"]


@dataclass(frozen=True)
class CorrectionChoice:
    """What to correct.

    Attributes:
        mode: how the affine correction is fitted.
        variance: "schedule" calibrates the fresh noise; "drift" also takes what the fresh noise could not absorb out of the predicted noise
            (see `calib.correction.drift`), and "shift" treats it as a higher noise level of the next state (see
            `calib.correction.level_shift`); "q-drift" keeps the sampler's noise and adds the drift of Q-Drift; "none" keeps the step.
        parts: parts of the affine correction to fit; fewer than both are for ablations.
    """

    mode: Mode = "joint"
    variance: Variance = "schedule"
    parts: frozenset[Part] = BOTH_PARTS

    @property
    def accumulates(self) -> bool:
        """Whether the error that a chain has accumulated is corrected too; see `calib.correction.accumulated`."""
        return "chain" in self.parts


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
    moments: Moments, step: TableStep, choice: CorrectionChoice, measure: Callable[[Affine], Moments] | None = None
) -> StepCorrection:
    """Fit the correction of a step; see `fit_proposals`."""
    return fit_proposals(moments, step, [choice], measure)[choice]


def fit_proposals(
    moments: Moments, step: TableStep, choices: Iterable[CorrectionChoice], measure: Callable[[Affine], Moments] | None = None
) -> dict[CorrectionChoice, StepCorrection]:
    """Fit several corrections of a step. Those that differ in the variance alone are fitted and measured once.

    Args:
        moments: moments of `x, e, d` after guidance.
        step: the sampler's coefficients.
        choices: what to correct.
        measure: returns the moments of `STEP_CHANGE` of the whole step under a correction; required if `is_linear` is false.
    """
    ordered = sorted(choices, key=_affine_of)
    return {choice: fitted for _, same in groupby(ordered, _affine_of) for choice, fitted in _fit(moments, step, [*same], measure)}


def _affine_of(choice: CorrectionChoice) -> tuple[Mode, list[Part]]:
    """What decides the affine correction. The walk adds what the part `chain` asks for."""
    return choice.mode, sorted(choice.parts - {"chain"})


def _fit(
    moments: Moments, step: TableStep, choices: Sequence[CorrectionChoice], measure: Callable[[Affine], Moments] | None
) -> Iterator[tuple[CorrectionChoice, StepCorrection]]:
    """Fit choices that differ in the variance alone."""
    affine = fit_correction(moments, choices[0].mode, choices[0].parts, step.steps_left)
    change = _change(moments, step, affine, measure)
    for choice in choices:
        yield choice, _with_variance(moments, step, choice, affine, change)


def _change(moments: Moments, step: TableStep, affine: Affine, measure: Callable[[Affine], Moments] | None) -> Moments:
    if is_linear(step):
        return step_change(moments, affine, step)
    if measure is None:
        raise ValueError("the moments do not determine the variance of a step with clipping or history: it must be measured")
    return measure(affine)


def _with_variance(moments: Moments, step: TableStep, choice: CorrectionChoice, affine: Affine, change: Moments) -> StepCorrection:
    """Return a correction with the noise that it leaves the step, given the moments of the step's change."""
    excess = _excess(moments, step, choice.mode, affine, change)
    calibrated = (keep_sigma if choice.variance in ("none", "q-drift") else calibrate_sigma)(step.sigma, excess)
    if choice.variance not in ("drift", "q-drift"):
        return StepCorrection(affine, calibrated.sigma_corrected, residual_variance(moments, affine), calibrated.unabsorbed_variance)
    absorbed = step.sigma**2 - calibrated.sigma_corrected**2
    kappa = q_drift_share(change, step) if choice.variance == "q-drift" else matched_share(change, step, measured_excess(change) - absorbed)
    drifted = without_noise(affine, step, kappa, change.mean_of("noise"))
    unabsorbed = max(excess_without(change, step, kappa) - absorbed, 0.0)
    return StepCorrection(drifted, calibrated.sigma_corrected, residual_variance(moments, drifted), unabsorbed)


def _excess(moments: Moments, step: TableStep, mode: Mode, affine: Affine, change: Moments) -> float:
    if mode == "ptqd" and is_linear(step):
        return short_form_excess(step.out_coeff, residual_variance(moments, affine))
    return measured_excess(change)
