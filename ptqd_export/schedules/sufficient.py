"""Whether the moments of an earlier walk say enough for another schedule."""

from __future__ import annotations

from calib.correction.moments import PLAIN
from calib.correction.step_fit import is_linear
from engines.chain.schedule import Schedule
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.records.stored_statistics import StoredStatistics
from ptqd_export.schedules.settings import ScheduleRequest, ScheduleSettings


def why_not_refit(request: ScheduleRequest, settings: ScheduleSettings, base: Schedule, stored: StoredStatistics) -> str | None:
    """What the stored moments do not say of this schedule, or None where they say enough."""
    was, fit = base.sampler, settings.fit
    sampler, table = fit.sampler, fit.table
    some = next(iter(stored.moments.values()))[0]
    reasons = (
        (bool(request.walk_changes), "samples, seed and trajectory are those of a walk"),
        (sampler.model_copy(update={"guidance": was.guidance}) != was, f"they are of {was.name}, {was.steps} steps, eta {was.eta:g}"),
        (not all(is_linear(table.step(i)) for i in range(table.steps)), "the variance of steps with clipping or history is not in them"),
        (fit.correction.variance == "shift" or base.is_shifted, "a shift has the networks run at other timesteps"),
        (not set(settings.precisions) <= {*stored.moments, FULL_PRECISION}, f"they are of {', '.join(stored.moments)}"),
        (sampler.guidance != 1 and some.variables == PLAIN, "they are of a walk without guidance, of one branch"),
    )
    return next((reason for holds, reason in reasons if holds), None)
