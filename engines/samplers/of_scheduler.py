"""Find the sampler that corresponds to a model's own diffusers scheduler."""

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
    """Return the key of `SAMPLERS` for a diffusers `scheduler_config.json`.

    A scheduler without a counterpart here is replaced by a sampler on the same noise schedule: DDIM for unknown classes and for PNDM with
    Runge-Kutta steps; DPM-Solver++ 2M for DPM-Solver in third order or on noise predictions.
    """
    scheduler = str(config.get("_class_name", ""))
    if scheduler == "PNDMScheduler" and not config.get("skip_prk_steps", False):
        return _NEAREST
    if scheduler == "DPMSolverMultistepScheduler":
        order = "1" if config.get("solver_order", 2) == 1 else "2m"
        return f"dpm++{order}" + ("-sde" if str(config.get("algorithm_type", "")).startswith("sde") else "")
    return _SAMPLERS.get(scheduler, _NEAREST)
