"""Where the blocks of CompVis' `UNetModel` are in a U-Net of diffusers. Trainers of LoRAs use the original names too."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, NamedTuple, TypeAlias

Place: TypeAlias = tuple[str, str]
"""A module's names: the original, and diffusers'."""

ENDS: Mapping[str, str] = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
"""Modules outside of the blocks."""

RESNET: Mapping[str, str] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
SHORTCUT: Mapping[str, str] = {"skip_connection": "conv_shortcut"}
"""Modules of a residual block: those that every one has, and the one that some have."""


class OriginalBlocks(NamedTuple):
    """Places of the modules in the network's blocks."""

    resnets: list[Place]
    attentions: list[Place]
    downsamplers: list[Place]
    upsamplers: list[Place]


def original_blocks(network: Any) -> OriginalBlocks:
    """Return the places in a `UNet2DModel` or a `UNet2DConditionModel`.

    The original numbers the blocks of all levels consecutively. A downsampler is its own block; an upsampler is the last module in the last
    block of a level.
    """
    places, numbers = OriginalBlocks([], [], [], []), count(1)
    for level, block in enumerate(network.down_blocks):
        for layer in range(len(block.resnets)):
            _add_layer(places, block, f"input_blocks.{next(numbers)}", f"down_blocks.{level}", layer)
        if block.downsamplers:
            places.downsamplers.append((f"input_blocks.{next(numbers)}.0", f"down_blocks.{level}.downsamplers.0"))
    _add_middle(places, network.mid_block)
    numbers, source = count(), ""
    for level, block in enumerate(network.up_blocks):
        for layer in range(len(block.resnets)):
            source = f"output_blocks.{next(numbers)}"
            _add_layer(places, block, source, f"up_blocks.{level}", layer)
        if block.upsamplers:
            places.upsamplers.append((f"{source}.{1 + _attends(block)}", f"up_blocks.{level}.upsamplers.0"))
    return places


def _add_layer(places: OriginalBlocks, block: Any, source: str, target: str, layer: int) -> None:
    places.resnets.append((f"{source}.0", f"{target}.resnets.{layer}"))
    if _attends(block):
        places.attentions.append((f"{source}.1", f"{target}.attentions.{layer}"))


def _add_middle(places: OriginalBlocks, block: Any) -> None:
    """Add the middle block: a residual block, an attention if there is one, a residual block."""
    if block is None:
        return
    kinds = [
        (places.resnets, "resnets.0"),
        *([(places.attentions, "attentions.0")] if _attends(block) else []),
        (places.resnets, "resnets.1"),
    ]
    for number, (found, target) in enumerate(kinds):
        found.append((f"middle_block.{number}", f"mid_block.{target}"))


def _attends(block: Any) -> bool:
    return any(module is not None for module in getattr(block, "attentions", ()))
