"""The decoder of a latent model's first stage: `AutoencoderKL` or `VQModel`, with the scaling of the latents folded in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptqd_export.models.base import Decoder
from ptqd_export.models.diffusers_folder import DiffusersFolder

UNSCALED_PIPELINES = ("LDMSuperResolutionPipeline",)
"""Pipelines that decode latents as they are, whatever the scaling factor in the first stage's configuration, which has a default."""


SCALING_FACTOR = 0.18215
"""That of both classes where a configuration does not say."""


class KlDecoder(Decoder):
    """`decode(states / scale + shift)` of an `AutoencoderKL`.

    Args:
        first_stage: its encoder is dropped.
        scale: what latents were multiplied by for the denoiser.
        shift: what was subtracted from them before that.
    """

    def __init__(self, first_stage: nn.Module, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.first_stage = _without_encoder(first_stage)
        self.scale, self.shift = scale, shift

    def forward(self, states: Tensor) -> Tensor:
        images: Tensor = self.first_stage.decode(states / self.scale + self.shift, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        return images


class VqDecoder(Decoder):
    """`decode` of the codes of a `VQModel` that are nearest to `states / scale + shift` (van den Oord et al. 2017).

    The nearest code is the one with the largest $z e - |e|^2 / 2$, which no root or difference of large squares makes a tie.

    Args:
        first_stage: its encoder is dropped.
        scale: see `KlDecoder`.
        shift: see there.
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
        """States that are codes: half way between two codes, float32 may fall to either side."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(len(self.codes), (batch, *shape[1:]), generator=generator)
        return (self.codes[chosen].movedim(-1, 1) - self.shift) * self.scale


FIRST_STAGES: Mapping[str, type[KlDecoder | VqDecoder]] = {"AutoencoderKL": KlDecoder, "VQModel": VqDecoder}


def load_decoder(folder: DiffusersFolder) -> Decoder | None:
    """The decoder of a pipeline; None where there is no first stage, and the states are images."""
    for name, kind in folder.parts.items():
        if kind in FIRST_STAGES:
            return FIRST_STAGES[kind](folder.load(name), *_scaling(folder, name))
    return None


def _scaling(folder: DiffusersFolder, name: str) -> tuple[float, float]:
    """Scale and shift of the latents. Configurations that do not say leave them to the defaults of the class."""
    if folder.pipeline in UNSCALED_PIPELINES:
        return 1.0, 0.0
    config: Mapping[str, Any] = folder.config(name)
    return float(config.get("scaling_factor", SCALING_FACTOR)), float(config.get("shift_factor") or 0.0)


def _without_encoder(first_stage: nn.Module) -> nn.Module:
    del first_stage.encoder, first_stage.quant_conv
    return first_stage.eval().requires_grad_(False)
