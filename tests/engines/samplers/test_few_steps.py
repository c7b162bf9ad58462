"""Models of few steps are known by scheduler, network or name, and others are not taken for them."""

from __future__ import annotations

from typing import Any

import pytest

from engines.samplers.few_steps import few_steps_of


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "LCMScheduler"}, "LCMScheduler is that of a model distilled"),
        ({"_class_name": "TCDScheduler"}, "TCDScheduler is that"),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            "EulerDiscreteScheduler with trailing timesteps is that",
        ),
        (
            {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
            "EulerAncestralDiscreteScheduler with trailing",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing", "solver_order": 1, "use_flow_sigmas": True},
            "DPMSolverMultistepScheduler with trailing",
        ),
    ],
)
def test_a_model_of_few_steps_is_known_by_its_scheduler(config: dict[str, Any], named: str) -> None:
    few = few_steps_of(config)
    assert (few.steps, few.guidance) == (4, 1.0)
    assert few.note.startswith(named)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
        {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing", "use_flow_sigmas": True},
        {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing", "solver_order": 1},
    ],
    ids=str,
)
def test_other_models_take_many_steps(config: dict[str, Any]) -> None:
    assert few_steps_of(config) == (None, None, "")


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("stable-diffusion-3.5-large-turbo", 4),
        ("sdxl_lightning_8step", 8),
        ("Qwen-Image-Lightning-8steps-V1.1", 8),
        ("Hyper-SDXL-1step", 1),
        ("FLUX.1-schnell", 4),
        ("lcm-sdxl", 4),
        ("DreamShaper_XL_Turbo_v2", 4),
    ],
)
def test_a_model_of_few_steps_is_known_by_its_name(name: str, steps: int) -> None:
    few = few_steps_of(FLOW, ["model", name])
    assert (few.steps, few.guidance) == (steps, 1.0)
    assert few.note.startswith(f"only the name {name} says that the model was distilled")


@pytest.mark.parametrize(
    "name",
    [
        "stable-diffusion-3.5-large",
        "turbovision",
        "checkpoint-10000-steps",
        "50steps",
        "my-unet-10-steps",
        "sd15_16steps_finetune",
        "sd15-flash-attention",
        "lcmodel",
        "steps",
        "",
    ],
)
def test_other_names_tell_nothing(name: str) -> None:
    assert few_steps_of(FLOW, [name]) == (None, None, "")


def test_a_family_has_steps_and_guidance_of_its_own() -> None:
    assert few_steps_of(FLOW, ["Z-Image-Turbo"], (8, 1.0))[:2] == (8, 1.0)
    assert few_steps_of(FLOW, ["Hyper-FLUX-16steps"], (4, 3.5))[:2] == (16, 3.5)


def test_a_u_net_of_lcm_is_known_whatever_its_scheduler() -> None:
    few = few_steps_of({"_class_name": "EulerDiscreteScheduler"}, is_lcm=True)
    assert (few.steps, few.guidance) == (4, 8.5)
    assert "so sampler.name is lcm: sampler.steps is 4" in few.note
    assert "sampler.name" not in few_steps_of({"_class_name": "LCMScheduler"}, is_lcm=True).note
