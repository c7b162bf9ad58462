"""Which sampler a scheduler's configuration names."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from engines.samplers import SAMPLERS
from engines.samplers.of_scheduler import sampler_of

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("scheduler", "options", "name"),
    [
        ("DDIMScheduler", {}, "ddim"),
        ("DDPMScheduler", {}, "ddpm"),
        ("PNDMScheduler", {"skip_prk_steps": True}, "plms"),
        ("PNDMScheduler", {}, "ddim"),
        ("DPMSolverMultistepScheduler", {}, "dpm++2m"),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, "dpm++1"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpm++2m"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpm++2m-sde"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, "dpm++1-sde"),
        ("EulerDiscreteScheduler", {}, "euler"),
        ("EulerAncestralDiscreteScheduler", {}, "euler-ancestral"),
        ("FlowMatchEulerDiscreteScheduler", {}, "flow-euler"),
        ("UniPCMultistepScheduler", {}, "ddim"),
    ],
)
def test_the_name_of_a_scheduler_that_diffusers_made(scheduler: str, options: dict[str, Any], name: str) -> None:
    assert sampler_of({"_class_name": scheduler, **getattr(diffusers, scheduler)(**options).config}) == name
    assert sampler_of({"_class_name": scheduler, **options}) == name
    assert name in SAMPLERS


def test_a_configuration_without_a_class() -> None:
    assert sampler_of({}) == "ddim"
