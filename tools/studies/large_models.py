"""Writes networks of published shapes with random weights, to measure what a build of them needs.

A model folder has the network in bfloat16 shards and its scheduler; embeddings stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MODEL, CONDITIONS = "model", "conditions.npz"

PIXELS = 128
"""Sides of the images, as small as they can be without changing the network: what a build needs beside activations is the question."""

TOKENS = 32
SD3_LAYERS, SD3_HEADS = 24, 24


@dataclass(frozen=True)
class LargeModel:
    """A network to write.

    Attributes:
        part: the network's folder and its entry in the pipeline's index.
        network: name of its class in diffusers.
        config: its configuration.
        pipeline: name of the pipeline's class.
        scheduler, settings: name of the scheduler's class, and its settings.
        conditions: shape of every conditioning input for one sample.
        sampler: the `sampler` section of a plan.
        model: further keys of a plan's `model` section.
    """

    part: str
    network: str
    config: Mapping[str, Any]
    pipeline: str
    scheduler: str
    settings: Mapping[str, Any]
    conditions: Mapping[str, tuple[int, ...]]
    sampler: Mapping[str, Any]
    model: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write the model folder and the embeddings into a folder."""
        import diffusers
        import numpy as np
        import torch

        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        network: torch.nn.Module = getattr(diffusers, self.network)(**self.config).to(torch.bfloat16)
        network.save_pretrained(folder / MODEL / self.part, max_shard_size="2GB")  # type: ignore[operator]  # of diffusers' ModelMixin
        getattr(diffusers, self.scheduler)(**self.settings).save_pretrained(folder / MODEL / "scheduler")
        index = {
            "_class_name": self.pipeline,
            self.part: ["diffusers", self.network],
            "scheduler": ["diffusers", self.scheduler],
        }
        (folder / MODEL / "model_index.json").write_text(json.dumps(index))
        draw = np.random.default_rng(0).standard_normal
        embeddings = {name: draw((1, *shape), np.float32) for name, shape in self.conditions.items()}
        np.savez(folder / CONDITIONS, allow_pickle=False, **embeddings)

    def parameters(self, folder: Path) -> int:
        """Return the number of the network's parameters in a written folder: two bytes each, beside a small header."""
        return sum(file.stat().st_size for file in (folder / MODEL / self.part).glob("*.safetensors")) // 2


def sd3(millions: int) -> LargeModel:
    """Return Stable Diffusion 3.5 medium, cut to the fewest of its 24 layers that hold this many million parameters."""
    width = 64 * SD3_HEADS
    with_second_attention, without = 49 * width**2, 36 * width**2
    layers, left = 0, 1e6 * millions
    while layers < SD3_LAYERS and left > 0:
        left -= with_second_attention if layers < 13 else without
        layers += 1
    config = {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers, "attention_head_dim": 64,
        "num_attention_heads": SD3_HEADS, "joint_attention_dim": 4096, "caption_projection_dim": width, "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384 if layers == SD3_LAYERS else 96, "qk_norm": "rms_norm",
        "dual_attention_layers": list(range(min(layers, 13))),
    }  # fmt: skip
    return LargeModel(
        part="transformer",
        network="SD3Transformer2DModel",
        config=config,
        pipeline="StableDiffusion3Pipeline",
        scheduler="FlowMatchEulerDiscreteScheduler",
        settings={"shift": 3.0},
        conditions={"encoder_hidden_states": (TOKENS, 4096), "pooled_projections": (2048,)},
        sampler={"name": "flow-euler", "steps": 2},
        model={"size": [PIXELS, PIXELS]},
    )


def sdxl() -> LargeModel:
    """Return the U-Net of Stable Diffusion XL: 2.57 billion parameters."""
    cross = "CrossAttn"
    config = {
        "sample_size": PIXELS // 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", f"{cross}DownBlock2D", f"{cross}DownBlock2D"],
        "up_block_types": [f"{cross}UpBlock2D", f"{cross}UpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    return LargeModel(
        part="unet",
        network="UNet2DConditionModel",
        config=config,
        pipeline="StableDiffusionXLPipeline",
        scheduler="EulerDiscreteScheduler",
        settings={
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "timestep_spacing": "leading",
            "steps_offset": 1,
        },
        conditions={"encoder_hidden_states": (TOKENS, 2048), "text_embeds": (1280,), "time_ids": (6,)},
        sampler={"name": "euler", "steps": 2},
        model={},
    )
