"""diffusers folders whose denoiser is a `UNet2DModel` or a `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engines.errors import UsageError
from ptqd_export.models.asked_size import state_sides
from ptqd_export.models.base import Adapter, Declaration, ModelModules
from ptqd_export.models.conditions import (
    DOWN,
    EMBEDDINGS,
    IMAGE,
    INTRABLOCK,
    POOLED,
    REFINER_SIZES,
    SIZES,
    TIME_IDS,
    TIMESTEP_COND,
    ConditionInput,
    class_input,
    image_input,
)
from ptqd_export.models.diffusers_folder import Config, DiffusersFolder
from ptqd_export.models.diffusers_models.checked_declaration import checked
from ptqd_export.models.diffusers_models.diffusers_decoder import load_decoder, pixels_of
from ptqd_export.models.diffusers_models.diffusers_shapes import image_size, state_channels

ADDED = (POOLED, TIME_IDS)
"""Conditions that SDXL adds to the embedding of the timestep."""

POOLED_WIDTH = 1280
"""Width of the pooled embeddings of the text encoder that SDXL and its refiner share."""

TEXT_TIME = "text_time"
TEXT_PROJECTION = "text_proj"
OTHER_INPUTS: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "UNet2DModel": {"class_embed_type": (None,), "time_embedding_type": (None, "positional")},
    "UNet2DConditionModel": {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None, TEXT_PROJECTION),
        "addition_embed_type": (None, TEXT_TIME),
    },
}
"""Configuration keys of other inputs, and of timesteps that are not the training timestep, with the values that are supported."""


class DiffusersAdapter(Adapter):
    """Calls a diffusers U-Net with its conditions by name. Concatenates an image to the state, and drops learned variances."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        named = dict(zip(self.conditions, conditions, strict=True))
        image = named.pop(IMAGE, None)
        added = {name: named.pop(name) for name in ADDED if name in named}
        state = sample if image is None else torch.cat([sample, image], dim=1)
        nested: dict[str, object] = {"added_cond_kwargs": added} if added else {}  # UNet2DModel has no such argument
        for argument in (DOWN, INTRABLOCK):
            residuals = [named.pop(name) for name in self.conditions if name.startswith(f"{argument}_")]
            nested |= {argument: residuals} if residuals else {}
        out: Tensor = self.network(state, timestep, return_dict=False, **named, **nested)[0]
        return out[:, : sample.shape[1]]


def declare(path: Path, size: tuple[int, int] | None = None) -> Declaration:
    """See `ptqd_export.models.base.Family`. Without a first stage, the states are the images."""
    folder = DiffusersFolder(path)
    config = folder.config(folder.denoiser)
    channels, sides = state_channels(config["in_channels"], config["out_channels"]), image_size(config)
    if size is not None:
        height, width = state_sides(size, pixels_of(folder, 1), 2 ** (len(config["block_out_channels"]) - 1))
        sides = height, width
    images = () if channels == config["in_channels"] else (image_input(config["in_channels"] - channels, *sides),)
    few = folder.few_steps()
    declared = Declaration(
        family=f"diffusers {folder.kind}",
        sample_shape=(channels, *sides),
        inputs=(*_inputs(folder, config), *images),
        noise_schedule=folder.noise_schedule,
        sampler=folder.sampler.name,
        notes=(*folder.notes, *few.notes),
        steps=few.steps,
        guidance=few.guidance,
    )
    return checked(folder, declared, DiffusersAdapter, size)


def load(path: Path, declared: Declaration) -> ModelModules:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    adapter = DiffusersAdapter(folder.load(folder.denoiser), tuple(one.name for one in (*declared.inputs, *declared.control)))
    return ModelModules(adapter, load_decoder(folder))


def _inputs(folder: DiffusersFolder, config: Config) -> tuple[ConditionInput, ...]:
    _refuse_other_inputs(folder, config)
    if folder.kind == "UNet2DModel":
        labels = config.get("num_class_embeds")
        return (class_input(labels),) if labels else ()
    guidance = config.get("time_cond_proj_dim")
    embedded = (ConditionInput(TIMESTEP_COND, "float32", (guidance,)),) if guidance else ()
    text = (ConditionInput(EMBEDDINGS, "float32", ("tokens", _text_width(config))), *embedded)
    if config.get("addition_embed_type") is None:
        return text
    sizes = _sizes_in_time_ids(folder, config)
    pooled = config["projection_class_embeddings_input_dim"] - sizes * config["addition_time_embed_dim"]
    return *text, ConditionInput(POOLED, "float32", (pooled,)), ConditionInput(TIME_IDS, "float32", (sizes,))


def _refuse_other_inputs(folder: DiffusersFolder, config: Config) -> None:
    supported = OTHER_INPUTS[folder.kind]
    others = {name: config[name] for name, values in supported.items() if (config.get(name) or None) not in values}
    if others:
        raise UsageError(
            "This network has inputs that are not supported.",
            found=f"{folder.path / folder.denoiser}: " + ", ".join(f"{name} = {value}" for name, value in others.items()),
            expected=", ".join(f"{name} = {' or '.join(map(str, supported[name]))}" for name in others),
            mend="wrap the network in a model.factory that has the inputs it needs",
        )


def _text_width(config: Config) -> int:
    """Return the width of the text embeddings: of those that the network projects itself, if it does."""
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    widths = {width} if isinstance(width, int) else set(width)
    if len(widths) > 1:
        raise UsageError(
            "The blocks of this network take embeddings of different widths.",
            found=f"cross_attention_dim = {list(width)}",
            expected="one width for all blocks",
        )
    (found,) = widths
    return int(found)


def _sizes_in_time_ids(folder: DiffusersFolder, config: Config) -> int:
    """Return how many numbers `time_ids` has: the pipeline's index says whether it refines. Without an index, the published widths tell."""
    if folder.index is not None:
        return REFINER_SIZES if folder.index.get("requires_aesthetics_score") else SIZES
    rest = config["projection_class_embeddings_input_dim"] - POOLED_WIDTH
    return REFINER_SIZES if rest == REFINER_SIZES * config["addition_time_embed_dim"] else SIZES
