"""Encoders of every first stage, held against what diffusers' own pipelines do with images, and against the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import UsageError
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_decoder import load_decoder
from ptqd_export.models.diffusers_models.diffusers_encoder import ENCODERS, load_encoder
from ptqd_export.models.module_checks import check_states
from tests.ptqd_export.models.tiny_transformers import OTHER_STAGES

LEVELS = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
TINY = {
    "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
}  # fmt: skip
CODES = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 3, "num_vq_embeddings": 32, "scaling_factor": 0.5,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
MEAN, STD = [-1.6, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _save(folder: Path, kind: str, **config: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    first_stage = getattr(diffusers, kind)(**config).eval()
    first_stage.save_pretrained(folder / "vae")
    return first_stage


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


@torch.no_grad()
def _encoded(folder: Path, images: Tensor) -> Tensor:
    encoder = load_encoder(DiffusersFolder(folder))
    assert not hasattr(encoder.first_stage, "decoder")
    states: Tensor = encoder(images)
    return states


@torch.no_grad()
def test_the_mean_of_the_distribution_is_scaled_and_shifted(tmp_path: Path, images: Tensor) -> None:
    vae = _save(tmp_path, "AutoencoderKL", **LEVELS, scaling_factor=1.5, shift_factor=0.25)
    mean = vae.encode(images).latent_dist.mean
    torch.testing.assert_close(_encoded(tmp_path, images), (mean - 0.25) * 1.5)
    assert (vae.encode(images).latent_dist.sample() - mean).abs().max() > 0.1


@torch.no_grad()
def test_statistics_of_the_latents_are_applied_as_sdxl_does(tmp_path: Path, images: Tensor) -> None:
    vae = _save(tmp_path, "AutoencoderKL", **LEVELS, scaling_factor=0.5, latents_mean=MEAN, latents_std=STD)
    expected = (vae.encode(images).latent_dist.mode() - _column(MEAN)) * 0.5 / _column(STD)
    torch.testing.assert_close(_encoded(tmp_path, images), expected)


@pytest.mark.parametrize(
    ("kind", "config", "factor"),
    [("AutoencoderTiny", TINY, 1.0), ("AutoencoderDC", OTHER_STAGES["AutoencoderDC"], 0.41407), ("VQModel", CODES, 0.5)],
)
@torch.no_grad()
def test_first_stages_that_return_latents_are_scaled(
    tmp_path: Path, images: Tensor, kind: str, config: dict[str, Any], factor: float
) -> None:
    vae = _save(tmp_path, kind, **config)
    torch.testing.assert_close(_encoded(tmp_path, images), vae.encode(images, return_dict=False)[0] * factor)


@torch.no_grad()
def test_patches_of_flux_2_have_the_statistics_of_its_normalization(tmp_path: Path, images: Tensor) -> None:
    from diffusers import AutoencoderKLFlux2, Flux2Pipeline

    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**LEVELS).eval()
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    vae.save_pretrained(tmp_path / "vae")
    patches = Flux2Pipeline._patchify_latents(vae.encode(images).latent_dist.mode())
    expected = (patches - vae.bn.running_mean.view(1, -1, 1, 1)) / (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    torch.testing.assert_close(_encoded(tmp_path, images), expected)


@torch.no_grad()
def test_images_are_the_only_frame_of_videos(tmp_path: Path, images: Tensor) -> None:
    vae = _save(tmp_path, "AutoencoderKLQwenImage", **OTHER_STAGES["AutoencoderKLQwenImage"])
    mean = vae.encode(images.unsqueeze(2)).latent_dist.mode().squeeze(2)
    expected = (mean - _column(vae.config.latents_mean)) / _column(vae.config.latents_std)
    torch.testing.assert_close(_encoded(tmp_path, images), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_not_supported_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, "AutoencoderKL", **LEVELS)
    monkeypatch.delitem(ENCODERS, "AutoencoderKL")
    with pytest.raises(UsageError, match=r"(?s)encoder of this first stage is not supported.*AutoencoderKL\n.*AutoencoderTiny"):
        load_encoder(DiffusersFolder(tmp_path))


def test_a_model_without_a_first_stage_needs_no_encoder(class_model: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)has no first stage.*leave model\.encoder out"):
        load_encoder(DiffusersFolder(class_model))


def test_an_encoder_must_return_the_states(tmp_path: Path) -> None:
    _save(tmp_path, "AutoencoderKL", **LEVELS)
    folder = DiffusersFolder(tmp_path)
    encoder, decoder = load_encoder(folder), load_decoder(folder)
    assert decoder is not None
    check_states(encoder, decoder, (4, 8, 8))
    with pytest.raises(UsageError, match=r"(?s)does not turn the decoder's images back.*\[4, 8, 7\]"):
        check_states(torch.nn.Conv2d(3, 4, 3, 2), decoder, (4, 8, 7))
