"""The encoder of a latent model's first stage, with the scaling of the latents folded in: the inverse of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UsageError
from ptqd_export.models.base import EncoderModule
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_decoder import (
    PerChannel,
    find_first_stage,
    latent_scaling,
    make_images,
    patch_of,
    patch_scaling,
    scale_column,
    without_parts,
)


class KlEncoder(EncoderModule):
    """Computes `(latents - shift) * scale`, where the latents are the mean of the distribution that a first stage returns.

    A first stage that returns latents instead, such as that of Sana or of a codebook, is taken at its word: a codebook's lookup is the
    decoder's.

    Args:
        first_stage: the autoencoder; its decoder is dropped.
        scale: factor by which latents are multiplied for the denoiser.
        shift: value that is subtracted from latents before the multiplication.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, first_stage: nn.Module, scale: PerChannel, shift: PerChannel = 0.0) -> None:
        super().__init__()
        self.first_stage = without_parts(first_stage, "decoder", "post_quant_conv", "quantize")
        self.register_buffer("scale", scale_column(scale), persistent=False)
        self.register_buffer("shift", scale_column(shift), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (self._latents(images) - self.shift) * self.scale

    def _latents(self, images: Tensor) -> Tensor:
        found = self.first_stage.encode(images, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        latents: Tensor = found if isinstance(found, Tensor) else found.mode()
        return latents


class PatchEncoder(KlEncoder):
    """Encodes to patches of latents, normalized by the first stage's own statistics.

    Args:
        first_stage: the autoencoder of FLUX.2; see `PatchDecoder`.
    """

    def __init__(self, first_stage: nn.Module, *_: PerChannel) -> None:
        super().__init__(first_stage, *patch_scaling(first_stage))
        self._patch = patch_of(first_stage.config)  # type: ignore[arg-type]  # diffusers' own

    def _latents(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(super()._latents(images), self._patch)


class FrameEncoder(KlEncoder):
    """Encodes images as the only frame of videos.

    Args:
        first_stage: the autoencoder of Qwen-Image; its decoder is dropped.
        scale, shift: see `KlEncoder`.
    """

    def __init__(self, first_stage: nn.Module, scale: PerChannel, shift: PerChannel = 0.0) -> None:
        super().__init__(first_stage, scale, shift)
        make_images(self.first_stage)

    def _latents(self, images: Tensor) -> Tensor:
        stage: Any = self.first_stage
        moments: Tensor = stage.quant_conv(stage.encoder(images.unsqueeze(2))).squeeze(2)
        return moments.chunk(2, dim=1)[0]


ENCODERS: Mapping[str, type[KlEncoder]] = {
    "AutoencoderKL": KlEncoder,
    "AsymmetricAutoencoderKL": KlEncoder,
    "AutoencoderTiny": KlEncoder,
    "AutoencoderDC": KlEncoder,
    "AutoencoderKLFlux2": PatchEncoder,
    "AutoencoderKLQwenImage": FrameEncoder,
    "VQModel": KlEncoder,
}


def load_encoder(folder: DiffusersFolder) -> EncoderModule:
    """Load the encoder of a pipeline's first stage.

    Raises:
        UsageError: there is no first stage, or its encoder is not supported.
    """
    name = find_first_stage(folder)
    if name is None:
        raise UsageError(
            "The model has no first stage, so nothing needs to be encoded.",
            found=f"model.encoder for {folder.path}",
            expected="a latent model",
            mend="leave model.encoder out of the plan: samples of this model can start from images without it",
        )
    kind = folder.parts[name]
    if kind not in ENCODERS:
        raise UsageError(
            "The encoder of this first stage is not supported.",
            found=f"{folder.path / name}: {kind}",
            expected=" or ".join(ENCODERS),
            mend="leave model.encoder out of the plan: the bundle then samples from noise alone",
        )
    return ENCODERS[kind](folder.load(name), *latent_scaling(folder, name))
