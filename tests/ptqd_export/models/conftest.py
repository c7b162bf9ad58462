"""Small random models of every family, saved by diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.ptqd_export.models.text import tiny_text

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

SIZE = 4
ROWS = 3
UNET = {
    "sample_size": SIZE, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip
FIRST_STAGE = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}  # fmt: skip


def _pixel(folder: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    DDPMPipeline(unet=UNet2DModel(**UNET), scheduler=DDPMScheduler()).save_pretrained(folder)


def _latent(folder: Path) -> None:
    from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel

    LDMPipeline(vqvae=_vq(), unet=UNet2DModel(**UNET), scheduler=DDIMScheduler(clip_sample=False)).save_pretrained(folder)


def _super_resolution(folder: Path) -> None:
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel

    unet = UNet2DModel(**UNET | {"in_channels": 6})
    LDMSuperResolutionPipeline(vqvae=_vq(), unet=unet, scheduler=DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    images = np.random.default_rng(0).uniform(-1, 1, (ROWS, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(folder.parent / "conditions.npz", allow_pickle=False, image=images)


def _dit(folder: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=SIZE, num_embeds_ada_norm=1000
    )
    vae = AutoencoderKL(**FIRST_STAGE, latent_channels=4)
    DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler(clip_sample=False)).save_pretrained(folder)


def _vq() -> Any:
    from diffusers import VQModel

    first_stage = VQModel(**FIRST_STAGE, latent_channels=3, num_vq_embeddings=32)
    torch.nn.init.normal_(first_stage.quantize.embedding.weight)
    return first_stage


SAVE: dict[str, Callable[[Path], None]] = {"pixel": _pixel, "latent": _latent, "super-resolution": _super_resolution, "dit": _dit}
GUIDANCE = {"dit": 1.5}


SLOW = ("pixel", "super-resolution")
"""Families marked slow: the builds of the class model and of the latent model also cover their parts."""


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SAVE])
def family(request: pytest.FixtureRequest) -> str:
    """Name of each family for which a diffusers pipeline can serve as the oracle."""
    return str(request.param)


@pytest.fixture(scope="session")
def family_model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the family's model; conditions, if the model takes images, are stored beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(family) / "model"
    SAVE[family](folder)
    return folder


@pytest.fixture(scope="session")
def family_build(family: str, family_model: Path, build_in: Callable[..., Built]) -> Built:
    """W8A8 bundle of the family's model, with three deterministic steps."""
    conditions = {"conditions": "conditions.npz"} if (family_model.parent / "conditions.npz").exists() else {}
    return build_in(
        family_model.parent,
        model={"path": "model", **conditions},
        sampler={"name": "ddim", "steps": 3, "eta": 0.0, "guidance": GUIDANCE.get(family, 1.0)},
        precisions=["w8a8"],
        calibration={"samples": 8, "batch_size": 8, "activation_samples": 24},
    )


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_sd1(tmp_path_factory.mktemp("sd1") / "model")


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_sd2(tmp_path_factory.mktemp("sd2") / "model")


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_sdxl(tmp_path_factory.mktemp("sdxl") / "model")
