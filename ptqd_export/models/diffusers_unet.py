"""diffusers folders whose denoiser is a `UNet2DModel` or a `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.errors import UsageError
from ptqd_export.models.base import Adapter, Declaration, Networks
from ptqd_export.models.conditions import IMAGE, ConditionInput, class_input, image_input
from ptqd_export.models.diffusers_decoder import load_decoder
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_shapes import image_size, state_channels

EMBEDDINGS = "encoder_hidden_states"


class DiffusersAdapter(Adapter):
    """Calls a diffusers U-Net with its conditions by name; an image is concatenated to the state, and learned variances are left out."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        named = dict(zip(self.conditions, conditions, strict=True))
        image = named.pop(IMAGE, None)
        state = sample if image is None else torch.cat([sample, image], dim=1)
        out: Tensor = self.network(state, timestep, return_dict=False, **named)[0]
        return out[:, : sample.shape[1]]


def declare(path: Path) -> Declaration:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    config = folder.config(folder.denoiser)
    channels, size = state_channels(config["in_channels"], config["out_channels"]), image_size(config)
    images = () if channels == config["in_channels"] else (image_input(config["in_channels"] - channels, *size),)
    return Declaration(
        family=f"diffusers {folder.kind}",
        sample_shape=(channels, *size),
        inputs=(*_inputs(folder.kind, config), *images),
        noise_schedule=folder.noise_schedule(),
    )


def load(path: Path, declared: Declaration) -> Networks:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    adapter = DiffusersAdapter(folder.load(folder.denoiser), tuple(one.name for one in declared.inputs))
    return Networks(adapter, load_decoder(folder))


def _inputs(kind: str, config: Mapping[str, Any]) -> tuple[ConditionInput, ...]:
    if kind == "UNet2DModel":
        labels = config.get("num_class_embeds")
        return (class_input(labels),) if labels else ()
    if config.get("class_embed_type") or config.get("addition_embed_type") or config.get("num_class_embeds"):
        raise UsageError("Added conditions of this network are not supported.", found=f"class or addition embedding in {kind}")
    return (ConditionInput(EMBEDDINGS, "float32", ("tokens", config["cross_attention_dim"])),)
