"""A chain that starts in its middle, from a clean sample with noise (SDEdit: Meng et al. 2021, arXiv 2108.01073)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from engines.chain.schedule import Schedule, Step
from engines.errors import BundleError, UsageError
from engines.samplers import SAMPLERS, NoiseSchedule, SamplerTable

Level: TypeAlias = tuple[float, float]
"""`(alpha, sigma)` of a state `alpha x0 + sigma eps`."""

CLEAN: Level = (1.0, 0.0)


@dataclass(frozen=True)
class LateStart:
    """The rest of a chain.

    Attributes:
        schedule: the steps that are left, numbered from 0.
        levels: level of the state before each step, and that of the sample at the end, [S + 1].
    """

    schedule: Schedule
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, schedule: Schedule, noise_schedule: NoiseSchedule, strength: float) -> LateStart:
        """Return what a strength leaves of a schedule.

        A sampler with history takes the first step in first order, and those behind in as high an order as the new predictions allow. The
        correction of such a step stays that of its usual order. The first step is not shifted, because its state has no noise of earlier
        steps, and computes everything. Features are extrapolated through those of the last two such steps from the start on.

        Args:
            schedule: the whole schedule.
            noise_schedule: noise schedule of the model.
            strength: share of the steps to take, as in diffusers.

        Raises:
            UsageError: the strength leaves no step, or the sampler cannot start at that step.
            BundleError: the schedule has other steps than its sampler.
        """
        sampler = schedule.sampler
        first = first_step(sampler.steps, strength)
        row = _row(sampler.name, first, sampler.steps)
        whole, late = sampler.table(noise_schedule), sampler.table(noise_schedule, first)
        _check_same(schedule, whole)
        steps = _extrapolating(tuple(_steps(schedule.steps, whole, late, row)), schedule.steps, row)
        return cls(schedule.model_copy(update={"steps": steps}), (*late.levels[row:], CLEAN))


def first_step(steps: int, strength: float) -> int:
    """Return the step that a chain of `steps` steps starts at, by the rule of diffusers' `StableDiffusionImg2ImgPipeline`.

    Raises:
        UsageError: the strength is not above 0 and at most 1, or leaves no step.
    """
    if not 0 < strength <= 1:
        raise UsageError("The strength is out of range.", found=f"strength {strength:g}", expected="above 0, and at most 1")
    taken = min(int(steps * strength), steps)
    if taken == 0:
        raise UsageError(
            "The strength leaves no step of the chain.",
            found=f"strength {strength:g} of {steps} steps",
            expected=f"{1 / steps:.3g} or more",
            mend="raise the strength, or use a schedule with more steps",
        )
    return steps - taken


def _check_same(schedule: Schedule, whole: SamplerTable) -> None:
    """Check that a schedule visits the timesteps of its sampler on the model's noise schedule, whose levels then hold for its states."""
    stored = [step.timestep for step in schedule.steps]
    if len(stored) != whole.steps or not np.allclose(stored, whole.timestep, rtol=1e-5, atol=1e-3):
        raise BundleError(
            "A schedule has other steps than its sampler.",
            found=f"{len(stored)} steps, at timesteps {stored[0]:g} to {stored[-1]:g}",
            expected=f"{whole.steps} steps, at timesteps {whole.timestep[0]:g} to {whole.timestep[-1]:g}",
            mend="add a schedule of this sampler with `ptqd-export schedule`",
        )


def _row(name: str, first: int, steps: int) -> int:
    """Return the row of the sampler's table that its step `first` begins with."""
    row_of = SAMPLERS[name].row_of
    if row_of is not None:
        return row_of(first)
    if first == 0:
        return 0
    raise UsageError(
        f"The sampler {name} cannot start in the middle of its chain: it takes its first step twice.",
        found=f"a start at step {first} of {steps}",
        expected="strength 1, or another sampler",
        mend="add a schedule with `ptqd-export schedule --sampler ddim` or `--sampler dpm++2m`, and name it with --schedule",
    )


def _steps(steps: tuple[Step, ...], whole: SamplerTable, late: SamplerTable, row: int) -> Iterator[Step]:
    """Yield the steps from `row` on, with the coefficients of the late start where they differ from those of the whole chain."""
    for i in range(row, len(steps)):
        changes: dict[str, object] = {"step": i - row}
        found = late.step(i)
        if found != whole.step(i):
            changes |= {"x_coeff": found.x_coeff, "out_coeff": found.out_coeff, "history_coeffs": found.history_coeffs}
        if i == row or found != whole.step(i):
            changes["shifted"] = None
        if i == row and steps[i].reuse is not None:
            changes |= {"reuse": None, "extrapolation": None, "mixed": None}
        yield steps[i].model_copy(update=changes)


def _extrapolating(left: tuple[Step, ...], steps: tuple[Step, ...], row: int) -> tuple[Step, ...]:
    """Return the steps that are left, with new weights where the last two steps that computed everything are others than in the chain."""
    before, found = _last_computing(steps), _last_computing(left)
    changed = [i for i, step in enumerate(left) if step.extrapolation is not None and [row + j for j in found[i]] != before[row + i]]
    weights = {i: _weight(left[i].timestep, [left[j].timestep for j in found[i]]) for i in changed}
    return tuple(step.model_copy(update={"extrapolation": weights[i]}) if i in weights else step for i, step in enumerate(left))


def _last_computing(steps: tuple[Step, ...]) -> list[list[int]]:
    """Return the last two steps before each that compute everything, or the only one."""
    computing = [i for i, step in enumerate(steps) if step.reuse is None]
    return [[j for j in computing if j < i][-2:] for i in range(len(steps))]


def _weight(timestep: float, ends: list[float]) -> float | None:
    """Return the weight of the line through two timesteps, see `engines.chain.features.extrapolated`; None if they give none."""
    if len(ends) < 2 or not ends[0] > ends[1] > timestep:
        return None
    return (ends[1] - timestep) / (ends[0] - ends[1])
