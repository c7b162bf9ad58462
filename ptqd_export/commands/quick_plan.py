"""A plan for a first look: the same model, in minutes."""

from __future__ import annotations

from ptqd_export.plan import Plan, ReuseSection

STEPS = 10
SAMPLES = 64


def quick(plan: Plan) -> Plan:
    """Return the plan with one precision, fewer sampling steps, fewer samples for calibration, and no cuts."""
    steps = min(STEPS, plan.sampler.steps)
    calibration = plan.calibration.model_copy(update={"samples": SAMPLES, "activation_samples": SAMPLES, "batch_size": SAMPLES // 2})
    sampler = plan.sampler.model_copy(update={"steps": steps})
    changes = {"sampler": sampler, "precisions": plan.precisions[:1], "calibration": calibration, "reuse": ReuseSection()}
    return plan.model_copy(update=changes)


def quick_note(whole: Plan) -> str:
    """Return what a quick plan gives up, compared with the plan that it was made from."""
    made = quick(whole)
    names = [" and ".join(plan.precisions) for plan in (made, whole)]
    fewer = "" if names[0] == names[1] else f"{names[0]} instead of {names[1]}, "
    cuts = ", no cuts where steps reuse features" if whole.reuse.cuts else ""
    return (
        f"quick: {fewer}{made.sampler.steps} sampling steps instead of {whole.sampler.steps}, "
        f"{made.calibration.samples} calibration samples instead of {whole.calibration.samples}{cuts}. "
        "Pictures are coarser and figures less certain; leave out --quick for a bundle to keep."
    )
