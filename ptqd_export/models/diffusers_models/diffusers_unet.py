"""diffusers folders whose denoiser is a `UNet2DModel` or a `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.errors import UsageError
from engines.samplers.of_scheduler import sampler_of
from ptqd_export.models.base import Adapter, Declaration, ModelModules
from ptqd_export.models.conditions import EMBEDDINGS, IMAGE, POOLED, TIME_IDS, ConditionInput, class_input, image_input
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.diffusers_decoder import load_decoder
from ptqd_export.models.diffusers_models.diffusers_shapes import image_size, state_channels

ADDED = (POOLED, TIME_IDS)
"""Conditions that SDXL adds to the embedding of the timestep."""

SIZES = 6
"""Numbers in `time_ids`: height and width of the original and of the target image, and the corner of the crop."""

TEXT_TIME = "text_time"
OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Configuration keys of other conditions, which are not supported."""


class DiffusersAdapter(Adapter):
    """Calls a diffusers U-Net with its conditions by name. Concatenates an image to the state, and drops learned variances."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        named = dict(zip(self.conditions, conditions, strict=True))
        image = named.pop(IMAGE, None)
        added = {name: named.pop(name) for name in ADDED if name in named}
        state = sample if image is None else torch.cat([sample, image], dim=1)
        nested = {"added_cond_kwargs": added} if added else {}  # UNet2DModel has no such argument
        out: Tensor = self.network(state, timestep, return_dict=False, **named, **nested)[0]
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
        noise_schedule=folder.noise_schedule,
        sampler=sampler_of(folder.scheduler),
    )


def load(path: Path, declared: Declaration) -> ModelModules:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    adapter = DiffusersAdapter(folder.load(folder.denoiser), tuple(one.name for one in declared.inputs))
    return ModelModules(adapter, load_decoder(folder))


def _inputs(kind: str, config: Mapping[str, Any]) -> tuple[ConditionInput, ...]:
    if kind == "UNet2DModel":
        labels = config.get("num_class_embeds")
        return (class_input(labels),) if labels else ()
    others = {name: config[name] for name in OTHER_CONDITIONS if config.get(name)}
    added = config.get("addition_embed_type")
    if others or added not in (None, TEXT_TIME):
        found = ", ".join(f"{name} = {value}" for name, value in {**others, "addition_embed_type": added}.items())
        raise UsageError(
            "This network has conditions that are not supported.", found=found, expected=f"addition_embed_type = {TEXT_TIME}, or none"
        )
    embeddings = ConditionInput(EMBEDDINGS, "float32", ("tokens", config["cross_attention_dim"]))
    if added is None:
        return (embeddings,)
    pooled = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
    return embeddings, ConditionInput(POOLED, "float32", (pooled,)), ConditionInput(TIME_IDS, "float32", (SIZES,))
