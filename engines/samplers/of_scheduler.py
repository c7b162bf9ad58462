"""Find the sampler that corresponds to a model's own diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_SAME: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}
"""Samplers that take the same steps as a scheduler."""

_NEAREST: Mapping[str, str] = {
    "DEISMultistepScheduler": "dpm++2m",
    "DPMSolverSinglestepScheduler": "dpm++2m",
    "UniPCMultistepScheduler": "dpm++2m",
    "SASolverScheduler": "dpm++2m-sde",
    "DPMSolverSDEScheduler": "dpm++2m-sde",
    "HeunDiscreteScheduler": "euler",
    "KDPM2DiscreteScheduler": "euler",
    "LMSDiscreteScheduler": "euler",
    "KDPM2AncestralDiscreteScheduler": "euler-ancestral",
}
"""Samplers of the same kind as a scheduler that has none of its own here, on the same noise schedule. DDIM serves any other scheduler."""


class SamplerOf(NamedTuple):
    """A sampler for a model.

    Attributes:
        name: key of `engines.samplers.SAMPLERS`.
        note: how the sampler differs from the model's scheduler; empty if it takes the same steps.
    """

    name: str
    note: str = ""


def sampler_of(config: Mapping[str, Any]) -> SamplerOf:
    """Return the sampler for a diffusers `scheduler_config.json`."""
    scheduler = str(config.get("_class_name", ""))
    if scheduler in _SAME:
        return SamplerOf(_SAME[scheduler])
    if scheduler == "PNDMScheduler":
        return SamplerOf("plms") if config.get("skip_prk_steps", False) else _nearest("ddim", "PNDMScheduler with Runge-Kutta steps")
    if scheduler == "DPMSolverMultistepScheduler":
        return _dpm_solver(config)
    if not scheduler:
        return SamplerOf("ddim", "the scheduler's configuration names no class; the sampler is ddim")
    return _nearest(_NEAREST.get(scheduler, "ddim"), scheduler)


def _dpm_solver(config: Mapping[str, Any]) -> SamplerOf:
    order, algorithm = config.get("solver_order", 2), str(config.get("algorithm_type", "dpmsolver++"))
    name = f"dpm++{'1' if order == 1 else '2m'}" + ("-sde" if algorithm.startswith("sde") else "")
    same = order in (1, 2) and algorithm.endswith("++")
    return SamplerOf(name) if same else _nearest(name, f"DPMSolverMultistepScheduler with {algorithm} of order {order}")


def _nearest(name: str, scheduler: str) -> SamplerOf:
    return SamplerOf(name, f"{scheduler} has no sampler here; {name} takes its place, on the same noise schedule")
