"""Changes of a plan that make its build quicker, each with the seconds that it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ptqd_export.plan import Plan
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.estimate.planned_stages import planned_stages

FEWER_SAMPLES = 128
"""Samples of a first walk: from 64 on, `auto` compares corrections on more than a handful."""

LEAST_SAVED = 0.05
"""Share of the build that a change must save to be named."""

CHANGES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    f"calibration.samples {FEWER_SAMPLES}": ("calibration", {"samples": FEWER_SAMPLES}),
    'correction.mode "joint"': ("correction", {"mode": "joint"}),
    'steps.policy "snr"': ("steps", {"policy": "snr", "budget": None}),
    'quantization.rounding "nearest"': ("quantization", {"rounding": "nearest"}),
    "quantization.adapters null": ("quantization", {"adapters": None}),
    "quantization.step_groups 1": ("quantization", {"step_groups": 1}),
}
"""By how a message names the change: the section of the plan, and its new values."""


def quicker_plans(
    context: BuildContext, stages: Sequence[str], seconds: Callable[[BuildContext], Callable[[str], float]]
) -> dict[str, float]:
    """Return the seconds that each change saves, the most first, if it saves enough to be named.

    Args:
        context: context of the build.
        stages: names of the stages that follow.
        seconds: returns, for a context, how long each of its stages takes.
    """
    before = sum(map(seconds(context), stages))
    saved = {}
    for name, (section, values) in CHANGES.items():
        other = _with(context, section, values)
        kept = set(planned_stages(other))
        after = sum(map(seconds(other), (stage for stage in stages if stage in kept)))
        if before - after >= LEAST_SAVED * before:
            saved[name] = before - after
    return dict(sorted(saved.items(), key=lambda change: change[1], reverse=True))


def _with(context: BuildContext, section: str, values: Mapping[str, object]) -> BuildContext:
    """Return the context of the build with other values in a section of the plan, except for more samples than it has."""
    plan: Plan = context.plan
    old = getattr(plan, section)
    if "samples" in values and old.samples <= FEWER_SAMPLES:
        return context
    return context.changed(replace(context.plan_file, plan=plan.model_copy(update={section: old.model_copy(update=values)})))
