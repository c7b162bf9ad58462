"""Chains of half as many steps: what a chain must beat that saves time within its steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from calib.walk.fitted_schedule import uncorrected_schedule
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.samplers import SAMPLERS, NoiseSchedule

OTHER_SAMPLER = "dpm++2m"
"""DPM-Solver++ of the second order, which needs fewer steps than most."""


@dataclass(frozen=True)
class FewerSteps:
    """A chain of one precision without corrections.

    Attributes:
        sampler: name of the sampler.
        steps: number of steps.
        precision: precision of every step.
    """

    sampler: str
    steps: int
    precision: str


def fewer_steps(schedule: Schedule, noise_schedule: NoiseSchedule, precisions: Iterable[str]) -> dict[FewerSteps, Schedule]:
    """Return the chains of half the steps of a schedule, by its own sampler and by DPM-Solver++.

    They end at the pictures of the schedule's own chain only without fresh noise: the result is empty for chains with it. A sampler that
    cannot take half the steps on the model's noise schedule is left out.

    Args:
        schedule: the chain of all steps.
        noise_schedule: noise schedule of the model.
        precisions: precisions of the chains.
    """
    if any(step.sigma > 0 for step in schedule.steps) or schedule.sampler.steps < 2:
        return {}
    count, found = schedule.sampler.steps // 2, dict[FewerSteps, Schedule]()
    for name in dict.fromkeys((schedule.sampler.name, OTHER_SAMPLER)):
        if noise_schedule.prediction_type not in SAMPLERS[name].predictions:
            continue
        chosen = {"name": name, "steps": count, "eta": 0.0, "timesteps": None, "sigmas": None}
        sampler = schedule.sampler.model_copy(update=chosen)
        try:
            table = sampler.table(noise_schedule)
        except UsageError:  # nobody asked for this chain, which only serves to compare
            continue
        for precision in precisions:
            found[FewerSteps(name, count, precision)] = uncorrected_schedule(sampler, table, precision)
    return found
