"""diffusers' own pipelines as the oracle, and this project's chains to compare with them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.chain.noise import NoiseSource
from engines.chain.update import update
from engines.samplers import compile_sampler
from ptqd_export.models.base import LoadedModel
from ptqd_export.plan import PlanFile, load_plan

Array = NDArray[Any]
STEPS, GUIDANCE, SEED = 3, 3.0, 5
PROMPTS = ("a photo of the red dog", "cat")
NEGATIVE = "the word"


@cache
def pipeline(folder: Path) -> Any:
    """Load the pipeline of a folder, with weights of either variant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DiffusionPipeline

        half = "fp16" if (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists() else None
        loaded = DiffusionPipeline.from_pretrained(folder, variant=half, torch_dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def start(model_shape: tuple[int, ...], count: int) -> Array:
    """Return the start states of the first `count` chains; every sampler here starts with variance 1."""
    return NoiseSource(SEED, model_shape).start(np.arange(count))


def of_pipeline(folder: Path, prompts: Sequence[str], negative: str | None, latents: Array, output: str) -> Array:
    """Run the pipeline; return latents [N, C, h, w], or images [N, 3, H, W] clipped to [-1, 1]."""
    found = pipeline(folder)(
        prompt=list(prompts), negative_prompt=None if negative is None else [negative] * len(prompts), latents=torch.from_numpy(latents),
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, eta=0.0, output_type=output, return_dict=False,
    )[0]  # fmt: skip
    return np.asarray(found if output == "latent" else 2 * found - 1)


def of_modules(model: LoadedModel, prompts: int, sampler: str = "ddim") -> Array:
    """Sample latents with the model's torch network, step by step over the sampler's table."""
    assert model.conditioning is not None
    table = compile_sampler(sampler, STEPS, 0.0, model.noise_schedule)
    feeds = model.conditioning.feeds(np.arange(prompts), guided=True)
    conditions = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in model.adapter.conditions]
    x: Array = table.init_sigma * start(model.sample_shape, prompts).astype(np.float64)
    history: list[Array] = []
    for i in range(table.steps):
        step = table.step(i)
        both = torch.from_numpy(step.input_scale * np.concatenate([x, x])).float()
        with torch.no_grad():
            conditional, unconditional = model.adapter(both, torch.full((2 * prompts,), step.timestep), *conditions).double().chunk(2)
        x, history = update(x, (unconditional + GUIDANCE * (conditional - unconditional)).numpy(), step, history)
    return x


def plan_of(folder: Path, guidance: float = GUIDANCE, /, **model: Any) -> PlanFile:
    """Write a plan beside the model's folder and load the plan."""
    plan = {
        "model": {"path": folder.name, "prompts": list(PROMPTS), **model},
        "sampler": {"name": "ddim", "steps": STEPS, "guidance": guidance},
        "precisions": ["w8a8"],
        "calibration": {"samples": 8, "batch_size": 4, "activation_samples": 16},
        "target": {"name": "onnxruntime", "threads": 2, "benchmark_batch": 2},
        "output": "bundle",
    }
    (folder.parent / "plan.json").write_text(json.dumps(plan))
    return load_plan(folder.parent / "plan.json")
