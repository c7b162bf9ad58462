"""The sampler that a model's own scheduler is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEAREST = "ddim"

_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}


def sampler_of(config: Mapping[str, Any]) -> str:
    """A key of `SAMPLERS` for a diffusers `scheduler_config.json`.

    A scheduler that is no sampler here gets one that walks the same noise schedule: PNDM with its Runge-Kutta steps and unknown classes
    DDIM, DPM-Solver of third order or of noise predictions DPM-Solver++ 2M.
    """
    scheduler = str(config.get("_class_name", ""))
    if scheduler == "PNDMScheduler" and not config.get("skip_prk_steps", False):
        return _NEAREST
    if scheduler == "DPMSolverMultistepScheduler":
        order = "1" if config.get("solver_order", 2) == 1 else "2m"
        return f"dpm++{order}" + ("-sde" if str(config.get("algorithm_type", "")).startswith("sde") else "")
    return _SAMPLERS.get(scheduler, _NEAREST)
