"""Recognise models that were distilled for a few steps, by their scheduler, their network or their name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engines.samplers.of_scheduler import sampler_of

FEW = 4
"""Steps that models distilled for one to eight steps can all be sampled with."""

MOST = 16
"""Most steps beside such a word that count as few."""

LCM_GUIDANCE = 8.5
"""Guidance scale of LCM's pipelines, which is an input of its networks."""

_WORD = re.compile(r"(?<![a-z])(turbo|lightning|lcm|tcd|schnell|hyper[-_ ]?(?:sd|sdxl|flux)|dmd2?)(?![a-z])", re.IGNORECASE)
"""What published names call such a model."""

_STATED = re.compile(r"(?<![0-9])([1-9][0-9]?)[-_ ]?steps?(?![a-z])", re.IGNORECASE)
"""The number of steps in a name, such as `sdxl_lightning_8step`."""


class FewSteps(NamedTuple):
    """How a model that was distilled for a few steps is sampled.

    Attributes:
        steps: length of the chain; None for a model that was not.
        guidance: scale of classifier-free guidance, where 1 is none; None for a model that was not.
        note: how the model was recognised; empty for a model that was not.
    """

    steps: int | None = None
    guidance: float | None = None
    note: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.note,) if self.note else ()


def few_steps_of(
    config: Mapping[str, Any], names: Sequence[str] = (), usual: tuple[int, float] = (FEW, 1.0), *, is_lcm: bool = False
) -> FewSteps:
    """Return how to sample a model that was distilled for a few steps.

    LCM and TCD have schedulers of their own, and LCM's U-Nets take the guidance as an input. SDXL-Turbo, SD-Turbo and SDXL-Lightning have
    Euler's schedulers with trailing timesteps, which otherwise only models without a signal at the last timestep have. On a flow,
    DPM-Solver of order 1 is Euler's method. Stable Diffusion 3.5 large turbo has the configurations of Stable Diffusion 3.5 large: only
    its name tells.

    Args:
        config: content of `scheduler_config.json`.
        names: what the model is called, if it reads text: only such models are published under these words. A number of steps beside the
            word is the number that the model was made for.
        usual: steps and guidance of distilled models of this family.
        is_lcm: whether the network is a U-Net of LCM.
    """
    found = _mark(config, names, is_lcm)
    if not found:
        return FewSteps()
    steps, guidance = stated_steps(names) or usual[0], LCM_GUIDANCE if is_lcm else usual[1]
    meaning = "which is none" if guidance == 1 else "an input of the network"
    return FewSteps(
        steps,
        guidance,
        f"{found}: sampler.steps is {steps} and sampler.guidance {guidance:g}, {meaning}; set those that the model was made for, "
        "if they are others",
    )


def _mark(config: Mapping[str, Any], names: Sequence[str], is_lcm: bool) -> str:
    """Return by what a model of few steps is recognised; empty for other models."""
    scheduler = str(config.get("_class_name", ""))
    if scheduler in ("LCMScheduler", "TCDScheduler"):
        return f"{scheduler} is that of a model distilled for few steps"
    if is_lcm:
        return f"a U-Net with time_cond_proj_dim was distilled for few steps of LCM, not of {scheduler}, so sampler.name is lcm"
    if _is_trailing_euler(config):
        return f"{scheduler} with trailing timesteps is that of a model distilled for few steps"
    named = few_step_name(names)
    return "" if named is None else f"only the name {named[1]} says that the model was distilled for few steps"


def few_step_name(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the word for few steps in the first name that has one, in small letters without a version, and this name; else None."""
    found = next(filter(None, map(_WORD.search, names)), None)
    return None if found is None else (re.split("[^a-z]", found[1].lower())[0], found.string)


def stated_steps(names: Sequence[str]) -> int | None:
    """Return the number of steps beside such a word; None if no name says one."""
    stated = (int(found[1]) for found in map(_STATED.search, filter(_WORD.search, names)) if found)
    return next((steps for steps in stated if steps <= MOST), None)


def _is_trailing_euler(config: Mapping[str, Any]) -> bool:
    euler = config.get("_class_name") in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    on_flow = bool(config.get("use_flow_sigmas")) and sampler_of(config).name == "dpm++1"
    return config.get("timestep_spacing") == "trailing" and (euler or on_flow) and not config.get("rescale_betas_zero_snr")
