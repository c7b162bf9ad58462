"""The decoder of a latent model's first stage: `AutoencoderKL` or `VQModel`, with the scaling of the latents folded in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptqd_export.models.base import DecoderModule
from ptqd_export.models.diffusers_folder import DiffusersFolder

UNSCALED_PIPELINES = ("LDMSuperResolutionPipeline",)
"""Pipelines that decode latents without scaling, whatever factor the first stage's configuration has (it has one by default)."""


SCALING_FACTOR = 0.18215
"""Default of both classes, for configurations without a scaling factor."""


class KlDecoder(DecoderModule):
    """Computes `decode(states / scale + shift)` with an `AutoencoderKL`.

    Args:
        first_stage: the autoencoder; its encoder is dropped.
        scale: factor by which latents were multiplied for the denoiser.
        shift: value that was subtracted from latents before the multiplication.
    """

    def __init__(self, first_stage: nn.Module, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.first_stage = _without_encoder(first_stage)
        self.scale, self.shift = scale, shift

    def forward(self, states: Tensor) -> Tensor:
        images: Tensor = self.first_stage.decode(states / self.scale + self.shift, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        return images


class VqDecoder(DecoderModule):
    """Decodes the codes of a `VQModel` that are nearest to `states / scale + shift` (van den Oord et al. 2017).

    The nearest code is the one with the largest $z e - |e|^2 / 2$. Without a root or a difference of large squares, rounding makes no ties.

    Args:
        first_stage: the VQModel; its encoder is dropped.
        scale: see `KlDecoder`.
        shift: see `KlDecoder`.
    """

    codes: Tensor

    def __init__(self, first_stage: nn.Module, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("codes", first_stage.quantize.embedding.weight.detach())  # type: ignore[union-attr, operator]  # of VQModel
        del first_stage.quantize
        self.first_stage = _without_encoder(first_stage)
        self.scale, self.shift = scale, shift

    def forward(self, states: Tensor) -> Tensor:
        latents = (states / self.scale + self.shift).movedim(1, -1)
        nearest = (latents @ self.codes.T - self.codes.square().sum(1) / 2).argmax(-1)
        quantized = F.embedding(nearest, self.codes).movedim(-1, 1)
        images: Tensor = self.first_stage.decode(quantized, force_not_quantize=True, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        return images

    def example_states(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        """Return states that are codes: for a state half way between two codes, float32 may choose either."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(len(self.codes), (batch, *shape[1:]), generator=generator)
        return (self.codes[chosen].movedim(-1, 1) - self.shift) * self.scale


FIRST_STAGES: Mapping[str, type[KlDecoder | VqDecoder]] = {"AutoencoderKL": KlDecoder, "VQModel": VqDecoder}


def load_decoder(folder: DiffusersFolder) -> DecoderModule | None:
    """Load the decoder of a pipeline; None if there is no first stage and the states are images."""
    for name, kind in folder.parts.items():
        if kind in FIRST_STAGES:
            return FIRST_STAGES[kind](folder.load(name), *_scaling(folder, name))
    return None


def _scaling(folder: DiffusersFolder, name: str) -> tuple[float, float]:
    """Return scale and shift of the latents. Values that the configuration lacks are the defaults of the class."""
    if folder.pipeline in UNSCALED_PIPELINES:
        return 1.0, 0.0
    config: Mapping[str, Any] = folder.config(name)
    return float(config.get("scaling_factor", SCALING_FACTOR)), float(config.get("shift_factor") or 0.0)


def _without_encoder(first_stage: nn.Module) -> nn.Module:
    del first_stage.encoder, first_stage.quant_conv
    return first_stage.eval().requires_grad_(False)
