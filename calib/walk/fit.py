"""Fits a schedule, given networks, a sampler and calibration settings. Builds and `ptqd-export schedule` both call this module.

A schedule is fitted on a walk (`fit_on_walk`) or, in closed form, from the moments of an earlier walk (`refit`). A budget takes two fits:
after the first, `probe_fitted` measures the error that each precision causes in the end sample at each step, `calib.walk.budget` chooses
a chain, and the second fits the chosen chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from calib.correction.accumulated import obstacle
from calib.correction.correction_fit import Part
from calib.correction.drift import check_drift
from calib.correction.level_shift import LevelShift, check_shift
from calib.correction.moments import Moments
from calib.correction.proposals import AUTO, AnyMode, proposals_of, taken_by_walk
from calib.correction.step_fit import CorrectionChoice, Variance
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.chain_error import Pictured
from calib.walk.fitted_schedule import record_of, schedule_of
from calib.walk.policy import FixedPolicy, Policy
from calib.walk.probed_steps import ProbedSteps
from calib.walk.reuse import ReuseSteps
from calib.walk.sensitivity import ProbePlan, Probes, probe
from calib.walk.state_store import store_bytes
from calib.walk.step_networks import BatchEvaluator, StepBatch, StepOutputs, computed
from calib.walk.step_result import StepResult, fit_result
from calib.walk.walk import Walk, WalkPlan
from engines.chain.denoiser import Denoiser
from engines.chain.features import precision_and_cut
from engines.chain.schedule import JudgedCorrection, SamplerRecord, Schedule
from engines.chain.told_denoiser import told
from engines.errors import UsageError
from engines.host.room import check_room
from engines.samplers import NoiseSchedule, SamplerTable

PAIRED_SHARE = 4
"""Under `auto`, one sample in this many takes the full-precision chain beside the walk. All that is fitted on it are differences of means
and variances between the ends of pairs.
"""

PROBED_SAMPLES = 16
"""Number of calibration samples to probe, starting from the first. The walk takes all of them."""


@dataclass(frozen=True, eq=False)
class FitSettings:
    """Complete settings of a fit.

    Attributes:
        sampler: sampler of the chain.
        noise_schedule: noise schedule of the model.
        mode: how the correction is fitted; `auto` chooses by where held-out chains end.
        variance: see `CorrectionChoice`.
        parts: see `CorrectionChoice`.
        policy: name of the rule that chooses the precisions; the schedule records it.
        choose: the rule itself. It differs from `policy` until a budget is spent.
        samples: samples of the walk.
        trajectory: visit the states of the corrected quantized sampler, or those of the full-precision one.
        batch_size: number of samples per call of a network.
        reuse: steps that reuse features of earlier ones; None if no step does.
    """

    sampler: SamplerRecord
    noise_schedule: NoiseSchedule
    mode: AnyMode
    variance: Variance
    parts: frozenset[Part]
    policy: str
    choose: Policy
    samples: CalibrationSamples
    trajectory: Literal["quantized", "fp"]
    batch_size: int
    reuse: ReuseSteps | None = None

    @cached_property
    def table(self) -> SamplerTable:
        """The sampler's coefficients."""
        return self.sampler.table(self.noise_schedule)

    @property
    def correction(self) -> CorrectionChoice:
        """What the walk corrects."""
        return taken_by_walk(self.mode, self.variance, self.parts, can_accumulate=self._obstacle is None)

    @property
    def proposals(self) -> tuple[CorrectionChoice, ...]:
        """The corrections to choose among; empty unless the mode is `auto`."""
        return proposals_of(self.mode, self.variance, self.parts, can_accumulate=self._obstacle is None)

    @property
    def _obstacle(self) -> UsageError | None:
        """Why the accumulated error cannot be corrected."""
        return obstacle(self.table, self.trajectory, self.policy)

    @property
    def level_shift(self) -> LevelShift | None:
        """The shift that takes steps from noisier levels, or None if the correction does not ask for it.

        Raises:
            UsageError: the steps cannot be shifted.
        """
        if self.variance != "shift":
            return None
        check_shift(self.table, self.trajectory)
        return LevelShift.of(self.noise_schedule)

    @property
    def undecided(self) -> FitSettings:
        """The settings without the choice of `auto`, for a fit that another one follows."""
        return replace(self, mode=self.correction.mode, parts=self.correction.parts)

    def check_steps(self) -> None:
        """Raises UsageError if the sampler's steps cannot be taken as the correction asks."""
        _ = self.level_shift
        if self.correction.variance in ("drift", "q-drift"):
            check_drift(self.table, self.correction.variance)
        if self.correction.accumulates and self._obstacle is not None:
            raise self._obstacle

    @property
    def paired(self) -> int:
        """Number of samples, from the first, that take the full-precision chain beside the walk."""
        count = self.samples.count if self.correction.accumulates else 0
        return math.ceil(count / PAIRED_SHARE) if self.mode == AUTO else count

    def spent(self, networks: Sequence[str]) -> FitSettings:
        """Return the settings with the chain that a budget bought: one network per step, a precision or one at a cut."""
        precisions = tuple(precision_and_cut(name)[0] for name in networks)
        return replace(self, choose=FixedPolicy(precisions), reuse=ReuseSteps.of(networks))


@dataclass(frozen=True)
class FitNetworks:
    """The networks to measure, all on the same measuring backend.

    Attributes:
        networks: networks by precision, including full precision.
        reference: name of full precision.
        evaluator: evaluates the networks of a walk elsewhere; None evaluates them in this process.
        pictured: see `ChainErrors`.
    """

    networks: Mapping[str, Denoiser]
    reference: str
    evaluator: BatchEvaluator | None = None
    pictured: Pictured | None = None

    def telling(self, on_evaluation: Callable[[], None]) -> FitNetworks:
        """Return these networks, which call `on_evaluation` after every batch of every network."""
        telling = {name: told(network, on_evaluation) for name, network in self.networks.items()}
        return replace(self, networks=telling, evaluator=None if self.evaluator is None else partial(self._evaluated, on_evaluation))

    def _evaluated(
        self, on_evaluation: Callable[[], None], count: int, batch: Callable[[int], StepBatch]
    ) -> Iterator[tuple[int, StepOutputs]]:
        """Evaluate batches elsewhere; implements `BatchEvaluator`."""
        assert self.evaluator is not None
        for index, found in self.evaluator(count, batch):
            for _ in found.outputs or [found.reference]:
                on_evaluation()
            yield index, found


@dataclass(frozen=True, eq=False)
class FittedChain:
    """The results of every step, and the schedule that follows from them.

    Attributes:
        settings: settings of the fit.
        results: results of every step.
        mixed: proposal for the chain that the policy chose, if it is not that of each precision's own chain.
        judged: evidence for the choice of the mode `auto`.
    """

    settings: FitSettings
    results: Sequence[StepResult]
    mixed: CorrectionChoice | None = None
    judged: tuple[JudgedCorrection, ...] = ()

    @cached_property
    def schedule(self) -> Schedule:
        fit = self.settings
        record = record_of(fit.mode, fit.variance, fit.parts)
        made = schedule_of(fit.sampler, record, fit.policy, fit.table, self.results, self.mixed)
        weights = {} if fit.reuse is None else fit.reuse.weights
        steps = tuple(step.model_copy(update={"extrapolation": weights.get(step.step)}) for step in made.steps)
        return made.model_copy(update={"judged": self.judged, "steps": steps if weights else made.steps})

    @property
    def proposals(self) -> tuple[CorrectionChoice, ...]:
        """The proposals that were fitted. A fit from moments knows no accumulated error."""
        return tuple(choice for choice in self.settings.proposals if choice in self.results[0].proposals)

    def corrected_by(self, choices: Mapping[str, CorrectionChoice]) -> FittedChain:
        """Return the chain with a proposal as the correction of each of these precisions."""
        return replace(self, results=[result.corrected_by(choices) for result in self.results])


def fit_on_walk(networks: FitNetworks, settings: FitSettings, folder: Path, on_evaluation: Callable[[], None]) -> FittedChain:
    """Take the calibration samples down the chain, and fit every network at every step.

    Args:
        networks: networks to measure.
        settings: settings of the fit.
        folder: parent of the temporary folder with the states.
        on_evaluation: called after each of the `walk_evaluations`.

    Raises:
        UsageError: the steps of the sampler cannot be shifted.
        NoRoomError: there is too little space on the disk for the states.
    """
    plan, results = walk_plan(networks.telling(on_evaluation), settings), list[StepResult]()
    stored = ((len(plan.rows), len(plan.quantized)), (settings.paired, 1))
    needed = sum(samples * store_bytes(plan.noise.shape, networks, plan.table.history) for samples, networks in stored)
    check_room(folder, needed, "the states of the walk")
    with Walk(plan, folder) as steps:
        results.extend(steps)
    return FittedChain(settings, results)


def walk_evaluations(networks: Iterable[str], settings: FitSettings) -> int:
    """Return how often `fit_on_walk` runs a network on a batch."""
    batches, paired = (math.ceil(samples / settings.batch_size) for samples in (settings.samples.count, settings.paired))
    evaluations = settings.table.steps * (batches * len(computed(networks, reuses=False)) + paired)
    if settings.reuse is None:
        return evaluations
    return evaluations + batches * (len(settings.reuse.steps) * len(settings.reuse.networks) + len(settings.reuse.keeping))


def walk_plan(networks: FitNetworks, settings: FitSettings) -> WalkPlan:
    """Return the plan of the walk that `fit_on_walk` takes."""
    return WalkPlan(
        table=settings.table,
        reference=networks.networks[networks.reference],
        quantized=networks.networks,
        noise=settings.samples.noise,
        rows=settings.samples.rows,
        policy=settings.choose if settings.reuse is None else settings.reuse.policy(settings.choose),
        correction=settings.correction,
        proposals=settings.proposals,
        reuse=settings.reuse,
        paired=settings.paired,
        guidance=settings.sampler.guidance,
        trajectory=settings.trajectory,
        batch_size=settings.batch_size,
        shift=settings.level_shift,
        evaluator=networks.evaluator,
    )


def refit(settings: FitSettings, stored: Mapping[str, Sequence[Moments]], reference: str) -> FittedChain:
    """Fit every precision at every step from the moments of an earlier walk, without running a network.

    Args:
        settings: settings of the fit; its samples are not used.
        stored: moments of the S steps before guidance, by precision.
        reference: name of full precision, which has no moments of its own.
    """
    by_step = ({name: steps[i] for name, steps in stored.items()} for i in range(settings.table.steps))
    return FittedChain(settings, [_refitted(settings, i, moments, reference) for i, moments in enumerate(by_step)])


def _refitted(settings: FitSettings, i: int, moments: Mapping[str, Moments], reference: str) -> StepResult:
    exact = _without_noise(next(iter(moments.values())))  # the moments of every precision agree on the full-precision variables
    return fit_result(
        i,
        settings.table.step(i),
        {reference: exact, **moments},
        guidance=settings.sampler.guidance,
        correction=replace(settings.correction, parts=settings.correction.parts - {"chain"}),
        proposals=[choice for choice in settings.proposals if not choice.accumulates],
        policy=settings.choose,
    )


def _without_noise(moments: Moments) -> Moments:
    """Return the moments of full precision compared with itself."""
    kept = [not name.startswith("d") for name in moments.variables]
    return moments.project(np.diag(np.array(kept, np.float64)), moments.variables)


def probe_evaluations(networks: int, steps: int) -> int:
    """Return how often `probe_fitted` runs a network on a batch, for this many networks with full precision."""
    return steps + (networks - 1) * ProbedSteps.of(steps).evaluations


def probe_fitted(networks: FitNetworks, schedule: Schedule, samples: CalibrationSamples, on_evaluation: Callable[[], None]) -> Probes:
    """Measure the error that every corrected quantized network causes in the end sample at each step; see `ProbedSteps`.

    Args:
        networks: networks that take batches of `PROBED_SAMPLES`.
        schedule: schedule that was fitted on these networks.
        samples: samples of the fit; the first `PROBED_SAMPLES` are probed.
        on_evaluation: called after each of the `probe_evaluations`.
    """
    networks = networks.telling(on_evaluation)
    probed = samples.first(PROBED_SAMPLES)
    plan = ProbePlan(
        schedule=schedule,
        reference=networks.networks[networks.reference],
        quantized={name: network for name, network in networks.networks.items() if name != networks.reference},
        noise=probed.noise,
        samples=probed.numbers,
        rows=probed.rows,
        batch_size=PROBED_SAMPLES,
    )
    return probe(plan)
