"""Fits a step of a chain from the moments of its states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from calib.correction.noise_fit import NoiseFit, fit_noise
from calib.correction.step_fit import CorrectionChoice, StepCorrection, fit_step
from calib.walk.policy import FittedStep, Policy
from engines.samplers.table import TableStep


@dataclass(frozen=True, eq=False)
class StepResult:
    """Result of a step. The mappings hold every precision, chosen or not.

    Attributes:
        step: index of the step in the walk.
        timestep: timestep given to the networks.
        chosen: precision that takes the step.
        moments: moments before guidance, so that a fit at another guidance scale needs no network.
        noise: split of the quantization noise, after guidance.
        corrections: corrections fitted after guidance.
        shifted: coefficients of the step if they differ from the sampler's; see `calib.correction.level_shift`.
    """

    step: int
    timestep: float
    chosen: str
    moments: Mapping[str, Moments]
    noise: Mapping[str, NoiseFit]
    corrections: Mapping[str, StepCorrection]
    shifted: TableStep | None = None


def fit_result(
    i: int,
    row: TableStep,
    moments: Mapping[str, Moments],
    *,
    guidance: float,
    correction: CorrectionChoice,
    policy: Policy,
    measure: Callable[[str, Affine], Moments] | None = None,
) -> StepResult:
    """Fit every precision at step `i` and lets the policy choose one.

    Args:
        i: index of the step in the walk.
        row: coefficients that the step is taken with.
        moments: moments before guidance, by precision.
        guidance: guidance scale w.
        correction: what to correct.
        policy: chooses the precision.
        measure: returns the moments of the whole step's change for a precision and a correction; see `fit_step`.
    """
    guided = {name: joint.guided(guidance) for name, joint in moments.items()}
    corrections = {
        name: fit_step(of_xed, row, correction, None if measure is None else partial(measure, name)) for name, of_xed in guided.items()
    }
    affines = {name: fitted.affine for name, fitted in corrections.items()}
    chosen = policy(FittedStep(i, row, guided, affines))
    noise = {name: fit_noise(of_xed) for name, of_xed in guided.items()}
    return StepResult(i, row.timestep, chosen, moments, noise, corrections)
