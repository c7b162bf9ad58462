"""`UNetModel` as diffusers' `UNet2DModel`, or with cross attention as its `UNet2DConditionModel`."""

from __future__ import annotations

from itertools import count
from typing import TypeAlias

import torch
from torch import nn

from ptqd_export.models.compvis.config import UNetConfig
from ptqd_export.models.compvis.links import Link, below, link

Place: TypeAlias = tuple[str, str]
"""Names of a module in the checkpoint and in diffusers."""

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_CONV = {"input": "op", "output": "conv"}
"""The convolution inside of a module that halves or doubles the resolution."""

_TRANSFORMER = ("norm", "proj_in", "proj_out")
_TRANSFORMER_BLOCK = (
    *(f"attn{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3",
)  # fmt: skip


def empty_unet(config: UNetConfig) -> nn.Module:
    """The network without values, on the meta device."""
    return _cross_attention_unet(config) if config.use_spatial_transformer else _self_attention_unet(config)


def _self_attention_unet(config: UNetConfig) -> nn.Module:
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention

    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if config.resblock_updown else ("DownBlock2D", "UpBlock2D")
    attends = [config.attends(level) for level in range(len(config.widths))]
    with torch.device("meta"):
        network: nn.Module = UNet2DModel(
            sample_size=config.image_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.widths,
            layers_per_block=config.num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if attend else down for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else up for attend in reversed(attends)),
            downsample_type="resnet" if config.resblock_updown else "conv",
            upsample_type="resnet" if config.resblock_updown else "conv",
            resnet_time_scale_shift="scale_shift" if config.use_scale_shift_norm else "default",
            attn_norm_num_groups=32,
            attention_head_dim=None,
        )
    for module in network.modules():
        if isinstance(module, Attention):  # UNet2DModel knows a width of heads, not their number
            module.heads = config.heads(module.inner_dim)
            module.scale = (module.inner_dim // module.heads) ** -0.5
    return network


def _cross_attention_unet(config: UNetConfig) -> nn.Module:
    from diffusers import UNet2DConditionModel

    attends = [config.attends(level) for level in range(len(config.widths))]
    with torch.device("meta"):
        network: nn.Module = UNet2DConditionModel(
            sample_size=config.image_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.widths,
            layers_per_block=config.num_res_blocks,
            down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            cross_attention_dim=config.context_dim,
            attention_head_dim=tuple(config.heads(width) for width in config.widths),  # diffusers means the number of heads
            transformer_layers_per_block=config.transformer_depth,
        )
    return network


def unet_links(config: UNetConfig, network: nn.Module) -> list[Link]:
    """Every module of `UNetModel` with weights, and where they go."""
    modules = dict(network.named_modules())
    links = [link(source, target) for source, target in _ENDS.items()]
    resnets, attentions, resamplers = _places(config)
    if config.resblock_updown:
        resnets += resamplers
    else:
        links += [link(f"{source}.{_CONV[source.split('_')[0]]}", f"{target}.conv") for source, target in resamplers]
    for source, target in resnets:
        shortcut = {"skip_connection": "conv_shortcut"} if modules[target].conv_shortcut is not None else {}
        links += below(source, target, _RESNET | shortcut)
    for source, target in attentions:
        links += (
            _transformer(config, source, target) if config.use_spatial_transformer else _attention(config, source, target, modules[target])
        )
    return links


def _transformer(config: UNetConfig, source: str, target: str) -> list[Link]:
    blocks = [f"transformer_blocks.{number}.{part}" for number in range(config.transformer_depth) for part in _TRANSFORMER_BLOCK]
    return below(source, target, {name: name for name in (*_TRANSFORMER, *blocks)})


def _attention(config: UNetConfig, source: str, target: str, module: nn.Module) -> list[Link]:
    projections = [f"{target}.{part}" for part in ("to_q", "to_k", "to_v")]
    heads = 1 if config.use_new_attention_order else int(module.heads)  # type: ignore[arg-type]
    return [link(f"{source}.qkv", *projections, heads=heads), *below(source, target, {"norm": "group_norm", "proj_out": "to_out.0"})]


def _places(config: UNetConfig) -> tuple[list[Place], list[Place], list[Place]]:
    """Residual blocks, attentions, and what changes the resolution. The original numbers the blocks of all levels through, and a
    change of resolution is a block of its own on the way down, the last layer of a level's last block on the way up."""
    levels = range(len(config.widths))
    last = levels[-1]
    resnets = [("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1")]
    attentions = [("middle_block.1", "mid_block.attentions.0")]
    resamplers = []
    numbers = count(1)
    for level in levels:
        for number in range(config.num_res_blocks):
            block, target = f"input_blocks.{next(numbers)}", f"down_blocks.{level}"
            resnets.append((f"{block}.0", f"{target}.resnets.{number}"))
            attentions += [(f"{block}.1", f"{target}.attentions.{number}")] if config.attends(level) else []
        if level != last:
            resamplers.append((f"input_blocks.{next(numbers)}.0", f"down_blocks.{level}.downsamplers.0"))
    numbers = count()
    for level in reversed(levels):
        target = f"up_blocks.{last - level}"
        for number in range(config.num_res_blocks + 1):
            block = f"output_blocks.{next(numbers)}"
            resnets.append((f"{block}.0", f"{target}.resnets.{number}"))
            attentions += [(f"{block}.1", f"{target}.attentions.{number}")] if config.attends(level) else []
        if level:
            resamplers.append((f"{block}.{1 + config.attends(level)}", f"{target}.upsamplers.0"))
    return resnets, attentions, resamplers
