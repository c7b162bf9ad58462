"""Models that were distilled for few steps, by the configurations that their authors published: `init` writes their steps and guidance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ptqd_export.commands.starter import starter_plan
from ptqd_export.plan import Plan
from tests.ptqd_export.models.tiny_transformers import FLOW, FLUX, FLUX2, PIXART, QWEN, SANA, SD3, Z_IMAGE

BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "set_alpha_to_one": False}
EULER = {**BETAS, "interpolation_type": "linear", "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "trailing"}
LCM = {"_class_name": "LCMScheduler", **BETAS, "original_inference_steps": 50, "prediction_type": "epsilon", "timestep_scaling": 10.0}
SHIFT_3 = {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
DYNAMIC = {**SHIFT_3, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": "exponential"}
LIGHTNING = {**DYNAMIC, "base_shift": math.log(3), "max_shift": math.log(3), "shift": 1.0, "shift_terminal": None}

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
    "block_out_channels": [16], "norm_num_groups": 8, "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"], "attention_head_dim": 8, "cross_attention_dim": 12,
}  # fmt: skip
SDXL = {**UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
OLD_PIXART = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, **PIXART}
SPRINT = {"_class_name": "SanaTransformer2DModel", **SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}

KINDS: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any], tuple[str, int, float]]] = {
    "sdxl-turbo": (
        "StableDiffusionXLPipeline", SDXL, {"_class_name": "EulerAncestralDiscreteScheduler", **EULER}, ("euler-ancestral", 4, 1.0)
    ),
    "sd-turbo": ("StableDiffusionPipeline", UNET, {"_class_name": "EulerDiscreteScheduler", **EULER}, ("euler", 4, 1.0)),
    "sdxl_lightning_8step": ("StableDiffusionXLPipeline", SDXL, {"_class_name": "EulerDiscreteScheduler", **EULER}, ("euler", 8, 1.0)),
    "LCM_Dreamshaper_v7": ("LatentConsistencyModelPipeline", {**UNET, "time_cond_proj_dim": 32}, LCM, ("lcm", 4, 8.5)),
    "stable-diffusion-3.5-large-turbo": (
        "StableDiffusion3Pipeline", {"_class_name": "SD3Transformer2DModel", **SD3}, SHIFT_3, ("flow-euler", 4, 1.0)
    ),
    "FLUX.1-schnell": (
        "FluxPipeline", {"_class_name": "FluxTransformer2DModel", **FLUX, "guidance_embeds": False}, {**SHIFT_3, "shift": 1.0},
        ("flow-euler", 4, 1.0),
    ),
    "FLUX.2-klein-4B": (
        "Flux2KleinPipeline", {"_class_name": "Flux2Transformer2DModel", **FLUX2, "guidance_embeds": False}, DYNAMIC, ("flow-euler", 4, 1.0)
    ),
    "Z-Image-Turbo": ("ZImagePipeline", {"_class_name": "ZImageTransformer2DModel", **Z_IMAGE}, SHIFT_3, ("flow-euler", 8, 1.0)),
    "Sana_Sprint_1.6B_1024px_diffusers": ("SanaSprintPipeline", SPRINT, {"_class_name": "SCMScheduler"}, ("scm", 2, 4.5)),
    "dreamshaper with another scheduler": (
        "StableDiffusionPipeline",
        {**UNET, "time_cond_proj_dim": 32},
        {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True},
        ("lcm", 4, 8.5),
    ),
    "PixArt-LCM-XL-2-1024-MS": ("PixArtAlphaPipeline", OLD_PIXART, LCM, ("lcm", 4, 1.0)),
    "Qwen-Image-Lightning-8steps": (
        "QwenImagePipeline", {"_class_name": "QwenImageTransformer2DModel", **QWEN}, LIGHTNING, ("flow-euler", 8, 1.0)
    ),
}  # fmt: skip
"""By the name on the hub: the pipeline, a small network with the published options, the published scheduler; sampler, steps, guidance."""

BY_NAME = ("stable-diffusion-3.5-large-turbo", "Qwen-Image-Lightning-8steps", "sdxl_lightning_8step")
"""Kinds whose steps only the name tells."""


def _plan(kind: str, folder: Path, **changed: Any) -> Plan:
    """Return the starter plan of a folder with the configurations of a kind, without weights."""
    pipeline, network, scheduler, _ = KINDS[kind]
    denoiser = "unet" if "block_out_channels" in network else "transformer"
    index: dict[str, Any] = {
        "_class_name": pipeline,
        denoiser: ["diffusers", network["_class_name"]],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    index |= {"is_distilled": True} if "klein" in kind else {}
    contents = {"model_index": index, f"{denoiser}/config": {**network, **changed}, "scheduler/scheduler_config": scheduler}
    for name, content in contents.items():
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return starter_plan(folder, "onnxruntime", folder.parent)


@pytest.mark.parametrize("kind", KINDS)
def test_init_writes_sampler_steps_and_guidance_of_a_published_model(kind: str, tmp_path: Path) -> None:
    sampler = _plan(kind, tmp_path / kind).sampler
    assert (sampler.name, sampler.steps, sampler.guidance) == KINDS[kind][3]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in BY_NAME])
def test_a_folder_of_another_name_is_recognised_by_its_configuration(kind: str, tmp_path: Path) -> None:
    sampler = _plan(kind, tmp_path / "model").sampler
    assert (sampler.name, sampler.steps, sampler.guidance) == KINDS[kind][3]


def test_the_name_in_a_cache_of_the_hub_and_of_a_saved_part_tells_too(tmp_path: Path) -> None:
    kind, cached = BY_NAME[0], "models--stabilityai--stable-diffusion-3.5-large-turbo/snapshots/ec07796fc06b096cc56de9762974a28f4c632eda"
    assert _plan(kind, tmp_path / cached).sampler.steps == 4
    for written in (f"stabilityai/{kind}", f"/home/me/.cache/huggingface/hub/{cached}/transformer"):
        plan = _plan(kind, tmp_path / "model", _name_or_path=written)
        assert (plan.sampler.steps, plan.sampler.guidance) == (4, 1.0)
        assert plan.comments[0].startswith(f"only the name {kind} says that the model was distilled for few steps")


def test_init_says_what_to_check_where_nothing_tells(tmp_path: Path) -> None:
    plan = _plan(BY_NAME[0], tmp_path / "model")
    assert (plan.sampler.steps, plan.sampler.guidance) == (28, 7.0)
    assert "Stable Diffusion 3.5 large turbo takes sampler.steps 4 and sampler.guidance 1" in plan.comments[0]
