"""Decoders of every first stage, held against what diffusers' own pipelines do with the latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import UsageError
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_decoder import load_decoder
from tests.ptqd_export.models.tiny_transformers import OTHER_STAGES

LEVELS = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
MEAN, STD = [-1.6, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2]
"""Of Playground 2.5's first stage."""


@pytest.fixture
def states() -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def _save(folder: Path, kind: str, **config: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    first_stage = getattr(diffusers, kind)(**config).eval()
    first_stage.save_pretrained(folder / "vae")
    return first_stage


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def _decoded(folder: Path, states: Tensor) -> Tensor:
    decoder = load_decoder(DiffusersFolder(folder))
    assert decoder is not None
    out: Tensor = decoder(states)
    return out


@torch.no_grad()
def test_statistics_of_the_latents_are_applied_as_sdxl_does(tmp_path: Path, states: Tensor) -> None:
    vae = _save(tmp_path, "AutoencoderKL", **LEVELS, scaling_factor=0.5, latents_mean=MEAN, latents_std=STD)
    latents = states * torch.tensor(STD).view(1, 4, 1, 1) / 0.5 + torch.tensor(MEAN).view(1, 4, 1, 1)
    torch.testing.assert_close(_decoded(tmp_path, states), vae.decode(latents).sample)
    assert (_decoded(tmp_path, states) - vae.decode(states / 0.5).sample).abs().max() > 0.01


@torch.no_grad()
def test_one_frame_of_a_video_is_decoded_as_qwen_image_does(tmp_path: Path, states: Tensor) -> None:
    vae = _save(tmp_path, "AutoencoderKLQwenImage", **OTHER_STAGES["AutoencoderKLQwenImage"])
    mean, std = (torch.tensor(OTHER_STAGES["AutoencoderKLQwenImage"][key]).view(1, 4, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    expected = vae.decode(states.unsqueeze(2) * std + mean).sample.squeeze(2)
    assert expected.shape == (2, 3, 8, 8)
    torch.testing.assert_close(_decoded(tmp_path, states), expected)
    assert expected.std() > 0.1


@torch.no_grad()
def test_patches_of_flux2_get_the_statistics_of_the_first_stage(tmp_path: Path) -> None:
    """As `Flux2Pipeline` decodes: the statistics are those of 2x2 patches as channels, which then become latents again."""
    from diffusers import Flux2Pipeline

    vae = _save(tmp_path, "AutoencoderKLFlux2", **LEVELS)
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    vae.save_pretrained(tmp_path / "vae")
    states = torch.randn(2, 16, 3, 2)
    mean, std = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    expected = vae.decode(Flux2Pipeline._unpatchify_latents(states * std + mean)).sample
    assert expected.shape == (2, 3, 12, 8)
    torch.testing.assert_close(_decoded(tmp_path, states), expected)


@pytest.mark.parametrize(("channels", "scale", "shift"), [(16, 1.5305, 0.0609), (16, 0.3611, 0.1159), (4, 0.13025, None)])
@torch.no_grad()
def test_latents_of_sd3_flux_and_pixart_are_scaled_and_shifted(tmp_path: Path, channels: int, scale: float, shift: float | None) -> None:
    vae = _save(tmp_path, "AutoencoderKL", **LEVELS | {"latent_channels": channels}, scaling_factor=scale, shift_factor=shift)
    states = torch.randn(2, channels, 4, 6)
    torch.testing.assert_close(_decoded(tmp_path, states), vae.decode(states / scale + (shift or 0)).sample)


@torch.no_grad()
def test_latents_of_sana_are_scaled(tmp_path: Path) -> None:
    """With the 32 channels of the published one."""
    widths = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (4, 8, 8, 32))
    config = {**OTHER_STAGES["AutoencoderDC"], **widths, "latent_channels": 32}
    vae, states = _save(tmp_path, "AutoencoderDC", **config), torch.randn(2, 32, 4, 3)
    expected = vae.decode(states / 0.41407).sample
    assert expected.shape == (2, 3, 32, 24)
    torch.testing.assert_close(_decoded(tmp_path, states), expected)


TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
ASYMMETRIC = {
    "down_block_out_channels": (8, 8), "up_block_out_channels": (16, 16), "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "factor"),
    [("AutoencoderTiny", TINY, 1.0), ("AsymmetricAutoencoderKL", ASYMMETRIC, 0.18215), ("AutoencoderKL", LEVELS, 0.18215)],
)
@torch.no_grad()
def test_a_factor_that_the_file_lacks_is_the_default_of_its_class(
    tmp_path: Path, states: Tensor, kind: str, config: dict[str, Any], factor: float
) -> None:
    vae = _save(tmp_path, kind, **config)
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "scaling_factor"}))
    torch.testing.assert_close(_decoded(tmp_path, states), vae.decode(states / factor).sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": MEAN}, "describes its latents in part.*latents_std = None"),
        ({"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.1}, "describes its latents in part.*shift_factor = 0.1"),
        ({"latent_rotation": 0.3}, "key that its class does not know.*latent_rotation = 0.3.*keys of diffusers' AutoencoderKL"),
    ],
)
def test_what_would_be_decoded_otherwise_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _save(tmp_path, "AutoencoderKL", **LEVELS)
    _edit(tmp_path, **changes)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        load_decoder(DiffusersFolder(tmp_path))


def test_unknown_keys_that_say_nothing_are_left_aside(tmp_path: Path, states: Tensor) -> None:
    _save(tmp_path, "AutoencoderKL", **LEVELS)
    before = _decoded(tmp_path, states)
    _edit(tmp_path, latent_rotation=None, _name_or_path="somewhere")
    assert torch.equal(_decoded(tmp_path, states), before)


def test_another_class_of_first_stage_is_refused_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(UsageError, match=r"(?s)first stage is not supported.*AutoencoderKLWan.*AutoencoderTiny"):
        load_decoder(DiffusersFolder(tmp_path))
