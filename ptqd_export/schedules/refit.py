"""A schedule in closed form, from the moments of a walk: no network runs."""

from __future__ import annotations

import numpy as np

from calib.moments import PLAIN, Moments
from calib.step_fit import is_linear
from calib.step_result import StepResult, fit_result
from engines.schedule import Schedule
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.settings import ScheduleRequest, ScheduleSettings
from ptqd_export.schedules.stored_statistics import StoredStatistics


def why_not_refit(request: ScheduleRequest, settings: ScheduleSettings, base: Schedule, stored: StoredStatistics) -> str | None:
    """What the stored moments do not say of this schedule, or None where they say enough."""
    was, sampler, table = base.sampler, settings.sampler, settings.table
    reasons = (
        (bool(request.walk_changes), "samples, seed and trajectory are those of a walk"),
        (sampler.model_copy(update={"guidance": was.guidance}) != was, f"they are of {was.name}, {was.steps} steps, eta {was.eta:g}"),
        (not all(is_linear(table.step(i)) for i in range(table.steps)), "the variance of steps with clipping or history is not in them"),
        (settings.correction.variance == "shift" or base.is_shifted, "a shift has the networks run at other timesteps"),
        (not set(settings.precisions) <= {*stored.moments, FULL_PRECISION}, f"they are of {', '.join(stored.moments)}"),
        (sampler.guidance != 1 and _a_step(stored).variables == PLAIN, "they are of a walk without guidance, of one branch"),
    )
    return next((reason for holds, reason in reasons if holds), None)


def refit(settings: ScheduleSettings, stored: StoredStatistics) -> list[StepResult]:
    """Fits every precision at every step."""
    return [
        fit_result(
            i,
            settings.table.step(i),
            {FULL_PRECISION: _without_noise(_a_step(stored, i)), **{name: steps[i] for name, steps in stored.moments.items()}},
            guidance=settings.sampler.guidance,
            correction=settings.correction,
            policy=settings.choose,
        )
        for i in range(settings.table.steps)
    ]


def _a_step(stored: StoredStatistics, i: int = 0) -> Moments:
    """Moments of some precision; the full-precision variables in them are those of all."""
    return next(iter(stored.moments.values()))[i]


def _without_noise(moments: Moments) -> Moments:
    """The moments that full precision has against itself."""
    kept = [not name.startswith("d") for name in moments.variables]
    return moments.project(np.diag(np.array(kept, np.float64)), moments.variables)
