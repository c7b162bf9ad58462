"""Run one half of the Stable Diffusion 1.5 proof in its own process and print the peak memory in GB.

`write` saves the U-Net with random weights; `build` runs every stage of a build.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path


def write(folder: Path, size: int) -> None:
    """Write the published configuration for latents [4, size, size], one embedding of 77 tokens, and a plan."""
    import numpy as np
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=size, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8, cross_attention_dim=768,
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in network.parameters()) == 859_520_964
    network.save_pretrained(folder / "model" / "unet")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False).save_pretrained(
        folder / "model" / "scheduler"
    )
    embeddings = np.random.default_rng(0).standard_normal((1, 77, 768), dtype=np.float32)
    np.savez(folder / "conditions.npz", encoder_hidden_states=embeddings)
    plan = {
        "model": {"path": "model", "conditions": "conditions.npz"},
        "sampler": {"name": "ddim", "steps": 1},
        "precisions": ["w8a8"],
        "calibration": {"samples": 1, "batch_size": 1, "activation_samples": 1},
        "target": {"name": "onnxruntime", "benchmark_batch": 1},
        "output": "bundle",
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def build(folder: Path) -> None:
    """Run the whole build, which prints its stages and their seconds."""
    from ptqd_export.plan import load_plan
    from ptqd_export.stages.run_build import run_build

    run_build(load_plan(folder / "plan.json"))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        build(Path(sys.argv[2]))
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}\n")
