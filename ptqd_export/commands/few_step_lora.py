"""Recognise LoRAs that distil a model to a few steps, such as LCM-LoRA, by their names: they are sampled in a way of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.samplers.few_steps import FEW, few_step_name, stated_steps
from engines.samplers.levels.timesteps import timesteps
from ptqd_export.models.lora.lora_names import lora_names

if TYPE_CHECKING:
    from ptqd_export.models.base import Declaration


@dataclass(frozen=True)
class FewStepWalk:
    """How a model is sampled.

    Attributes:
        declared: the model's declaration, whose sampler, steps, guidance and notes the LoRA changed.
        settings: settings of the plan's sampler beside these.
    """

    declared: Declaration
    settings: Mapping[str, Any] = field(default_factory=dict)


_TRAILING = {"timestep_spacing": "trailing"}

ON_BETAS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lcm": ("lcm", {}),
    "dmd": ("lcm", {}),
    "tcd": ("tcd", {"eta": 0.3}),
    "hyper": ("ddim", {"eta": 0.0, **_TRAILING}),
    "lightning": ("euler", _TRAILING),
    "turbo": ("euler", _TRAILING),
}
"""How the authors of LoRAs for Stable Diffusion and SDXL sample with them, by the word in the name: sampler and settings."""

ONE_STEP: Mapping[str, tuple[str, Mapping[str, Any]]] = {"hyper": ("tcd", {"eta": 1.0})}
"""The same, of those whose authors sample a chain of one step in another way."""

ON_FLOWS: Mapping[str, tuple[int, str]] = {
    "turbo": (8, ""),
    "hyper": (8, "; its authors use it at model.lora.scale 0.125"),
    "lightning": (FEW, "; its authors give the scheduler base_shift and max_shift log 3, without shift_terminal"),
}
"""Steps of LoRAs for flows, and what else their authors say, by the word in the name; others take `FEW`. The model's sampler stays."""

CFG_GUIDANCE = 5.0
"""Guidance scale of few-step LoRAs that keep classifier-free guidance, whose names say CFG."""

CFG_ON_FLOWS = {4: 3.0, 8: 5.0, 16: 7.0}
"""That of Hyper-SD's for Stable Diffusion 3, by their steps."""


def with_few_steps(lora: Path, declared: Declaration) -> FewStepWalk:
    """Return how a model is sampled with a LoRA: as before, unless the LoRA's name says that it was made for few steps.

    Raises what `lora_names` raises.
    """
    names = lora_names(lora)
    found = few_step_name(names)
    if found is None:
        return FewStepWalk(declared)
    word, name = found
    is_flow = declared.noise_schedule.prediction_type == "flow"
    usual, hint = ON_FLOWS.get(word, (FEW, "")) if is_flow else (FEW, "")
    steps = stated_steps(names) or usual
    guidance = _guidance(name, steps, declared)
    known = {} if is_flow else {**ON_BETAS, **(ONE_STEP if steps == 1 else {})}
    sampler, settings = known.get(word, (declared.sampler, {}))
    if word == "dmd" and sampler == "lcm":
        trailing = declared.noise_schedule.model_copy(update=_TRAILING)
        settings = {"timesteps": tuple(timesteps(trailing, steps).tolist())}
    note = (
        f"only the name {name} says that the LoRA was made for few steps: sampler.name is {sampler}, sampler.steps {steps} and "
        f"sampler.guidance {guidance:g}; set those of its authors, if they are others{hint}"
    )
    notes = (*declared.notes, note)
    return FewStepWalk(replace(declared, sampler=sampler, steps=steps, guidance=guidance, notes=notes), settings)


def _guidance(name: str, steps: int, declared: Declaration) -> float:
    if declared.embeds_guidance and declared.guidance is not None:
        return declared.guidance
    if "cfg" not in name.lower():
        return 1.0
    return CFG_ON_FLOWS.get(steps, CFG_GUIDANCE) if declared.noise_schedule.prediction_type == "flow" else CFG_GUIDANCE
