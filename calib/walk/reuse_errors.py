"""Measures the error of features by their age, on the full-precision chain, so that a budget can choose which steps reuse them.

The error of a step itself is measured at every step and age, under a correction that is fitted there. What it does to the end sample
follows from the sensitivity that the probes of the precisions found: end error per error of the step; see `calib.walk.probed_steps`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from calib.correction.correction_fit import Affine, fit_correction, residual_mean, residual_variance
from calib.correction.moments import FOLDS, Moments, observe
from calib.correction.step_fit import CorrectionChoice
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.chain_error import with_precisions
from calib.walk.fit import PROBED_SAMPLES, FitNetworks, FitSettings
from calib.walk.sensitivity import REFERENCE, Probes
from engines.arrays import Float32, Float64
from engines.chain.denoiser import Denoiser
from engines.chain.features import precision_and_cut
from engines.chain.finite import check_output
from engines.chain.schedule import Correction, Schedule
from engines.chain.step import ChainState, Move, advance, evaluate, evaluate_cut
from engines.errors import UsageError
from engines.samplers import SamplerTable, TableStep

MOST_AGE = 5
"""Largest number of steps for which features are kept."""


@dataclass(frozen=True, eq=False)
class ReusePlan:
    """What to measure.

    Attributes:
        table: coefficients of the chain.
        reference: full-precision network.
        at_cut: networks at the cut, by name.
        correction: what is corrected at a step.
        guidance: guidance scale w.
        samples: the samples, which are one batch.
    """

    table: SamplerTable
    reference: Denoiser
    at_cut: Mapping[str, Denoiser]
    correction: CorrectionChoice
    guidance: float
    samples: CalibrationSamples

    @classmethod
    def of(cls, networks: FitNetworks, settings: FitSettings, at_cut: Iterable[str]) -> ReusePlan:
        """Return the plan for some of the networks, whose batches are `PROBED_SAMPLES`, and the settings of the fit that was probed."""
        return cls(
            table=settings.table,
            reference=networks.networks[networks.reference],
            at_cut={name: networks.networks[name] for name in at_cut},
            correction=settings.correction,
            guidance=settings.sampler.guidance,
            samples=settings.samples.first(PROBED_SAMPLES),
        )


@dataclass(frozen=True, eq=False)
class AgedFeatures:
    """What was measured of features by their age, 1 to A. Ages that a step cannot have are 0.

    Attributes:
        errors: [S, A, Q] root mean square error that each network adds to the state at each step itself.
        coefficients: [S, A, Q, 3, C] gain, offset and state gain of the correction under which it does.
        variances: [S, A, Q] variance of the corrected output's error about its mean.
    """

    errors: Float64
    coefficients: Float64
    variances: Float64

    @classmethod
    def empty(cls, steps: int, networks: int, channels: int) -> AgedFeatures:
        shape = steps, MOST_AGE, networks
        return cls(np.zeros(shape), np.zeros((*shape, 3, channels)), np.zeros(shape))

    def chain(self, schedule: Schedule, networks: Sequence[str], choice: Sequence[str]) -> Schedule:
        """Return the schedule with a chain of these networks, one a step. Steps that reuse features take the corrections of their age, and
        the sampler's own noise.

        Args:
            schedule: schedule with corrections of every precision.
            networks: [Q] names of the networks that were measured.
            choice: [S] names, at most `MOST_AGE` of networks at the cut in a row.
        """
        whole, age, steps = with_precisions(schedule, [precision_and_cut(name)[0] for name in choice]), 0, []
        for step, name in zip(whole.steps, choice, strict=True):
            cut = precision_and_cut(name)[1]
            age = 0 if cut is None else age + 1
            own = {} if cut is None else {name: self._correction((step.step, age - 1, networks.index(name)), step.sigma)}
            steps.append(step.model_copy(update={"reuse": cut, "corrections": {**step.corrections, **own}}))
        return whole.model_copy(update={"steps": tuple(steps)})

    def _correction(self, place: tuple[int, int, int], sigma: float) -> Correction:
        gain, offset, state_gain = map(tuple, self.coefficients[place].tolist())
        variance = float(self.variances[place])
        return Correction(
            gain=gain, offset=offset, state_gain=state_gain, sigma_corrected=sigma, residual_variance=variance, unabsorbed_variance=0.0
        )

    def save(self, path: Path) -> None:
        np.savez(path, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> AgedFeatures:
        with np.load(path, allow_pickle=False) as archive:
            return cls(**{field.name: archive[field.name] for field in fields(cls)})


def reuse_evaluations(networks: int, steps: int) -> int:
    """Return how often `aged_features` runs a network on a batch, for this many networks at the cut."""
    return steps + networks * (steps + sum(min(i, MOST_AGE) for i in range(steps)))


def aged_features(plan: ReusePlan, on_evaluation: Callable[[], None] = lambda: None) -> AgedFeatures:
    """Evaluate every network at every step with features of every age."""
    numbers, rows = plan.samples.numbers, plan.samples.rows
    found = AgedFeatures.empty(plan.table.steps, len(plan.at_cut), plan.samples.noise.shape[0])
    kept = {name: deque[Float32](maxlen=MOST_AGE) for name in plan.at_cut}
    state = ChainState(np.float32(plan.table.init_sigma) * plan.samples.noise.start(numbers))
    for i in range(plan.table.steps):
        step = plan.table.step(i)
        e = evaluate(plan.reference, state.x, step, rows)
        check_output(e, REFERENCE, step.timestep, i)
        on_evaluation()
        for column, (name, network) in enumerate(plan.at_cut.items()):
            for age, features in enumerate(kept[name]):
                q, _ = evaluate_cut(network, state.x, step, rows, features)
                check_output(q, name, step.timestep, i)
                moments = observe(state.x, e, q, numbers % FOLDS).guided(plan.guidance)
                affine = fit_correction(moments, plan.correction.mode, plan.correction.parts, step.steps_left)
                place = i, age, column
                found.errors[place], found.variances[place] = _own_error(step, moments, affine), residual_variance(moments, affine)
                found.coefficients[place] = affine.gain, affine.offset, affine.state_gain
                on_evaluation()
            _, features = evaluate_cut(network, state.x, step, rows, None)
            kept[name].appendleft(features)
            on_evaluation()
        z = plan.samples.noise.step(i, numbers) if step.sigma > 0 else None
        state = advance(state, e, Move(i, step, REFERENCE, plan.guidance, sigma=step.sigma), z)
    return found


def end_amplitudes(errors: Float64, probes: Probes) -> Float64:
    """Return the root mean square error of the end sample for errors [S, A, Q] of the steps themselves.

    Raises:
        UsageError: the probes do not know the sensitivity of the end sample.
    """
    known = [p for p in range(len(probes.precisions)) if not (probes.own[:, p] == 1).all() and (probes.amplitudes[:, p] > 0).all()]
    if not known:
        raise UsageError(
            "A budget over steps that reuse features needs a quantized precision among its candidates.",
            found=", ".join(probes.precisions) or "none",
            expected="a precision whose output differs from full precision's at every step",
        )
    sensitivity = np.exp(np.log(probes.amplitudes[:, known] / probes.own[:, known]).mean(axis=1))
    return np.asarray(errors * sensitivity[:, None, None])


def _own_error(step: TableStep, moments: Moments, affine: Affine) -> float:
    square = residual_variance(moments, affine) + float(np.mean(residual_mean(moments, affine) ** 2))
    return abs(step.out_coeff + step.prediction_coeffs[1] * sum(step.history_coeffs[:1])) * float(np.sqrt(square))
