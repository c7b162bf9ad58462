"""Parts of a small Stable Diffusion without text encoders, and the conditions of two prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SIDE, TOKENS, WIDTH, NUM, STEPS, GUIDANCE, SEED = 8, 3, 12, 2, 2, 3.0, 5


def parts(**settings: Any) -> dict[str, Any]:
    """The parts of a pipeline: two blocks on the way down, one with attention and one without, as in Stable Diffusion."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **{
            "sample_size": SIDE, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": WIDTH, **settings,
        }
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False, set_alpha_to_one=False
    )
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return {"unet": unet.eval(), "scheduler": scheduler, **absent, "requires_safety_checker": False}


def table() -> dict[str, NDArray[np.float32]]:
    """The content of `conditions.npz`."""
    rows = np.random.default_rng(0).standard_normal((NUM + 1, TOKENS, WIDTH), dtype=np.float32)
    return {"encoder_hidden_states": rows[:NUM], "null.encoder_hidden_states": rows[NUM]}


def of_conditions(latents: NDArray[np.float32]) -> dict[str, Any]:
    """The arguments of a pipeline call that gives latents from these start states."""
    conditions = {name: torch.from_numpy(value) for name, value in table().items()}
    return {
        "prompt_embeds": conditions["encoder_hidden_states"],
        "negative_prompt_embeds": conditions["null.encoder_hidden_states"].expand(NUM, -1, -1), "latents": torch.from_numpy(latents),
        "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent",
    }  # fmt: skip


def settings(control: dict[str, Any] | None, **model: Any) -> dict[str, Any]:
    """The sections of a plan for a model saved as `model`."""
    return {
        "model": {"path": "model", "conditions": "conditions.npz", **({} if control is None else {"control": control}), **model},
        "sampler": {"name": "ddim", "steps": STEPS, "guidance": GUIDANCE},
        "precisions": ["w8a8"],
        "calibration": {"samples": 4, "batch_size": 4, "activation_samples": 8},
    }


def pixels(seed: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def save_model(parts_of_pipeline: dict[str, Any], folder: Path) -> Path:
    """Save `model` and `conditions.npz` in a folder, and return the folder."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(**parts_of_pipeline).save_pretrained(folder / "model")
    np.savez(folder / "conditions.npz", allow_pickle=False, **table())
    return folder
