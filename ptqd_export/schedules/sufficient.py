"""Decides whether the moments of an earlier walk suffice for another schedule."""

from __future__ import annotations

from calib.correction.moments import PLAIN
from calib.correction.step_fit import is_linear
from engines.chain.denoiser import effective_guidance
from engines.chain.schedule import Schedule
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.records.stored_statistics import StoredStatistics
from ptqd_export.schedules.settings import ScheduleRequest, ScheduleSettings


def why_not_refit(request: ScheduleRequest, settings: ScheduleSettings, base: Schedule, stored: StoredStatistics) -> str | None:
    """Return why the stored moments do not suffice for this schedule, or None if they do."""
    was, fit = base.sampler, settings.fit
    sampler, table = fit.sampler, fit.table
    first_step = next(iter(stored.moments.values()))[0]
    other_guidance = effective_guidance(sampler.guidance) != effective_guidance(was.guidance)
    reasons = (
        (bool(request.walk_changes), "other samples, seed or trajectory need a new walk"),
        (sampler.model_copy(update={"guidance": was.guidance}) != was, f"they are for {was.name}, {was.steps} steps, eta {was.eta:g}"),
        (not all(is_linear(table.step(i)) for i in range(table.steps)), "they lack the variance of steps with clipping or history"),
        (fit.variance == "shift" or base.is_shifted, "a shift runs the networks at other timesteps"),
        (fit.reuse is not None, "features that are reused come from a walk of the same chain"),
        ("chain" in fit.parts or "chain" in base.correction.parts, "the accumulated error is that of one chain"),
        (not set(settings.precisions) <= {*stored.moments, FULL_PRECISION}, f"they are for {', '.join(stored.moments)}"),
        (first_step.variables == PLAIN and other_guidance, f"they are of one branch, at guidance {was.guidance:g}"),
    )
    return next((reason for holds, reason in reasons if holds), None)
