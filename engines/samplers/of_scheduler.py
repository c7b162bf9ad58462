"""Find the sampler that corresponds to a model's own diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from engines.samplers.levels.noise_schedule import Spacing

_SAME: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
    "SCMScheduler": "scm",
}
"""Samplers that take the same steps as a scheduler."""

_NEAREST: Mapping[str, str] = {
    "DPMSolverSinglestepScheduler": "dpm++2m",
    "SASolverScheduler": "dpm++2m-sde",
    "DPMSolverSDEScheduler": "dpm++2m-sde",
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
    if scheduler in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        return _dpm_solver(config)
    if scheduler == "UniPCMultistepScheduler":
        return _unipc(config)
    if scheduler == "DEISMultistepScheduler":
        return _deis(config)
    if not scheduler:
        return SamplerOf("ddim", "the scheduler's configuration names no class; the sampler is ddim")
    return _nearest(_NEAREST.get(scheduler, "ddim"), scheduler)


def _dpm_solver(config: Mapping[str, Any]) -> SamplerOf:
    order, algorithm = config.get("solver_order", 2), str(config.get("algorithm_type", "dpmsolver++"))
    name = f"dpm++{'1' if order == 1 else '2m'}" + ("-sde" if algorithm.startswith("sde") else "")
    same = order in (1, 2) and algorithm.endswith("++")
    return SamplerOf(name) if same else _nearest(name, f"{config['_class_name']} with {algorithm} of order {order}")


def _unipc(config: Mapping[str, Any]) -> SamplerOf:
    order, predicts_clean = config.get("solver_order", 2), config.get("predict_x0", True)
    name = "unipc3" if order == 3 else "unipc2"
    if order not in (2, 3) or not predicts_clean:
        return _nearest(name, f"UniPCMultistepScheduler of order {order}" + ("" if predicts_clean else " with noise predictions"))
    changed = [key for key in ("disable_corrector", "solver_p") if config.get(key)]
    return _nearest(name, f"UniPCMultistepScheduler with {' and '.join(changed)}") if changed else SamplerOf(name)


def _deis(config: Mapping[str, Any]) -> SamplerOf:
    """Return DEIS, or DPM-Solver++ where diffusers' DEIS ends with a step from its lowest level to the same level."""
    idle = [key for key in (*get_args(Spacing), "use_flow_sigmas") if config.get(key)]
    if idle:
        return _nearest("dpm++2m", f"DEISMultistepScheduler with {idle[0]}")
    order = config.get("solver_order", 2)
    name = "deis3" if order == 3 else "deis2"
    return SamplerOf(name) if order in (2, 3) else _nearest(name, f"DEISMultistepScheduler of order {order}")


def _nearest(name: str, scheduler: str) -> SamplerOf:
    return SamplerOf(name, f"{scheduler} has no sampler here; {name} takes its place, on the same noise schedule")
