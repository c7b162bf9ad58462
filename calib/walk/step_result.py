"""Fits a step of a chain from the moments of its states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from calib.correction.noise_fit import NoiseFit, fit_noise
from calib.correction.step_fit import CorrectionChoice, StepCorrection, fit_proposals
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
        corrections: corrections fitted after guidance; the walk takes the step with that of `chosen`.
        proposals: every correction fitted at these states, by what it corrects and then by precision.
        shifted: coefficients of the step if they differ from the sampler's; see `calib.correction.level_shift`.
    """

    step: int
    timestep: float
    chosen: str
    moments: Mapping[str, Moments]
    noise: Mapping[str, NoiseFit]
    corrections: Mapping[str, StepCorrection]
    proposals: Mapping[CorrectionChoice, Mapping[str, StepCorrection]]
    shifted: TableStep | None = None

    def corrected_by(self, choices: Mapping[str, CorrectionChoice]) -> StepResult:
        """Return the result with a proposal as the correction of each of these networks, as far as the step evaluated them."""
        known = {name: choice for name, choice in choices.items() if name in self.corrections}
        return replace(self, corrections={**self.corrections, **{name: self.proposals[choice][name] for name, choice in known.items()}})


def fit_result(
    i: int,
    row: TableStep,
    moments: Mapping[str, Moments],
    *,
    guidance: float,
    correction: CorrectionChoice,
    proposals: Iterable[CorrectionChoice] = (),
    policy: Policy,
    measure: Callable[[str, Affine], Moments] | None = None,
) -> StepResult:
    """Fit every precision at step `i`, and let the policy choose one.

    Args:
        i: index of the step in the walk.
        row: coefficients that the step is taken with.
        moments: moments before guidance, by precision.
        guidance: guidance scale w.
        correction: what to correct.
        proposals: what else to correct; see `StepResult.proposals`.
        policy: chooses the precision.
        measure: returns the moments of the whole step's change for a precision and a correction; see `fit_proposals`.
    """
    guided = {name: joint.guided(guidance) for name, joint in moments.items()}
    choices = dict.fromkeys((correction, *proposals))
    fits = {
        name: fit_proposals(of_xed, row, choices, None if measure is None else partial(measure, name)) for name, of_xed in guided.items()
    }
    found = {choice: {name: of_name[choice] for name, of_name in fits.items()} for choice in choices}
    affines = {name: fitted.affine for name, fitted in found[correction].items()}
    chosen = policy(FittedStep(i, row, guided, affines))
    noise = {name: fit_noise(of_xed) for name, of_xed in guided.items()}
    return StepResult(i, row.timestep, chosen, moments, noise, found[correction], found)
