"""Which sampler a scheduler's configuration names."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from engines.samplers import SAMPLERS
from engines.samplers.of_scheduler import sampler_of

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


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
        ("DDIMParallelScheduler", {}, "ddim"),
        ("UniPCMultistepScheduler", {}, "dpm++2m"),
        ("HeunDiscreteScheduler", {}, "euler"),
        ("KDPM2AncestralDiscreteScheduler", {}, "euler-ancestral"),
        ("RePaintScheduler", {}, "ddim"),
    ],
)
def test_the_name_of_a_scheduler_that_diffusers_made(scheduler: str, options: dict[str, Any], name: str) -> None:
    assert sampler_of({"_class_name": scheduler, **getattr(diffusers, scheduler)(**options).config}).name == name
    assert sampler_of({"_class_name": scheduler, **options}).name == name
    assert name in SAMPLERS


def test_a_configuration_without_a_class() -> None:
    assert sampler_of({}).name == "ddim"


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ({"_class_name": "DDIMScheduler"}, ""),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2}, ""),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
            "with dpmsolver++ of order 3 has no sampler here",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "with dpmsolver of order 2 has no sampler here"),
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler with Runge-Kutta steps has no sampler here; ddim takes its place"),
        ({"_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler has no sampler here; dpm++2m takes its place"),
        ({"_class_name": "SomethingElse"}, "SomethingElse has no sampler here; ddim takes its place"),
        ({}, "names no class"),
    ],
)
def test_another_sampler_is_never_chosen_without_a_word(config: dict[str, Any], note: str) -> None:
    assert note in sampler_of(config).note
    assert bool(sampler_of(config).note) == bool(note)
