"""The models of the benchmark: one trained model, and three of common architectures with fixed random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engines.networks.conditioning import NULL_PREFIX

ROOT = Path(__file__).parents[2]
MODEL, PLAN, BUNDLE, CONDITIONS = "model", "plan.json", "bundle", "conditions.npz"
REUSE_PLAN, REUSE_BUNDLE, REUSE_PRECISION = "reuse.json", "reuse-bundle", "w8a8"
LDM_CLASSES, LDM_CONTEXT = 8, 512


@dataclass(frozen=True)
class BenchModel:
    """One model and the plan of its bundle.

    Attributes:
        title: display name.
        sampler: `sampler` section of the plan; the sampler is always DDIM, which the diffusers contestants run.
        calibration: `calibration` section of the plan, kept to what the quantizers need because nobody looks at the samples.
        save: writes a diffusers model to a folder, and its conditions beside it; None if the model is in the repository.
        source: folder of a model in the repository.
        model: further keys of the plan's `model` section.
        cuts: where steps of `tools.bench reuse` reuse features, the one that skips most first.
    """

    title: str
    sampler: Mapping[str, Any]
    calibration: Mapping[str, int]
    save: Callable[[Path], None] | None = None
    source: Path | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()

    def write_reuse(self, folder: Path) -> Path:
        """Write the model, unless it exists, and the plan of a bundle with its cuts; return the path of the plan."""
        steps = {"policy": "fixed", "precisions": [REUSE_PRECISION]}
        sections = {"precisions": [REUSE_PRECISION], "reuse": {"cuts": self.cuts}, "steps": steps, "correction": {"mode": "none"}}
        return self.write(folder, REUSE_PLAN, **sections, output=REUSE_BUNDLE)

    def write(self, folder: Path, name: str = PLAN, **sections: Any) -> Path:
        """Write the model, unless it exists, and its plan, with other sections where given; return the path of the plan."""
        path = self.source or folder / MODEL
        if self.save is not None and not path.exists():
            self.save(path)
        plan = {
            "model": {"path": MODEL if self.source is None else str(self.source), **self.model},
            "sampler": {"name": "ddim", **self.sampler},
            "precisions": ["w8a8", "w7a8", "w4a8"],
            "calibration": self.calibration,
            "target": {"name": "onnxruntime"},
            "output": BUNDLE,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(plan | sections, indent=1) + "\n")
        return folder / name


def _save_ddpm(folder: Path) -> None:
    """Save DDPM's U-Net for CIFAR-10, 36 million parameters, in diffusers' layout."""
    from diffusers import UNet2DModel

    _save(
        folder, lambda: UNet2DModel(
            sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip


def _save_dit(folder: Path) -> None:
    """Save DiT-S/2 for images of 256 x 256 (Peebles and Xie 2023)."""
    from diffusers import DiTTransformer2DModel

    _save(
        folder, lambda: DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=12, sample_size=32, patch_size=2,
            num_embeds_ada_norm=1000,
        )
    )  # fmt: skip


def _save_ldm(folder: Path) -> None:
    """Save the U-Net of LDM-4 ImageNet, 401 million parameters, and embeddings of a few random classes."""
    from diffusers import UNet2DConditionModel

    attention = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    _save(
        folder, lambda: UNet2DConditionModel(
            sample_size=64, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(192, 384, 576, 960),
            down_block_types=("DownBlock2D", *attention[0]), up_block_types=(*attention[1], "UpBlock2D"),
            cross_attention_dim=LDM_CONTEXT, attention_head_dim=1,
        )
    )  # fmt: skip
    context = np.random.default_rng(0).standard_normal((LDM_CLASSES + 1, 1, LDM_CONTEXT)).astype(np.float32)
    tables = {"encoder_hidden_states": context[1:], f"{NULL_PREFIX}encoder_hidden_states": context[0]}
    np.savez(folder.with_name(CONDITIONS), allow_pickle=False, **tables)


def _save(folder: Path, make: Callable[[], Any]) -> None:
    import torch
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    make().save_pretrained(folder)
    DDIMScheduler(clip_sample=False).save_pretrained(folder)


GUIDED = {"steps": 20, "eta": 1.0, "guidance": 1.5}

MODELS: Mapping[str, BenchModel] = {
    "digits": BenchModel(
        "digits U-Net, guided",
        GUIDED,
        {"samples": 32, "batch_size": 32, "activation_samples": 256},
        source=ROOT / "tools" / "digits" / "model",
        model={"null_class": 10},
        cuts=("skip_1", "skip_3"),
    ),
    "ddpm-36m": BenchModel(
        "DDPM U-Net, 36 M, 32 x 32",
        {"steps": 20, "eta": 1.0},
        {"samples": 8, "batch_size": 8, "activation_samples": 80},
        save=_save_ddpm,
        cuts=("skip_0", "skip_1", "skip_2"),
    ),
    "dit-s2": BenchModel(
        "DiT-S/2, 32 x 32 latents, guided",
        GUIDED,
        {"samples": 8, "batch_size": 8, "activation_samples": 80},
        save=_save_dit,
        cuts=("residual_2_21", "residual_6_17"),
    ),
    "ldm-4": BenchModel(
        "LDM-4, 401 M, 64 x 64 latents, guided, one step",
        {**GUIDED, "steps": 1},
        {"samples": 4, "batch_size": 1, "activation_samples": 4},
        save=_save_ldm,
        model={"conditions": CONDITIONS},
        cuts=("skip_1", "skip_2"),
    ),
}

USUAL = ("digits", "ddpm-36m", "dit-s2")
"""Models that are built by default; LDM-4 is left out because it has ten times as many parameters."""
