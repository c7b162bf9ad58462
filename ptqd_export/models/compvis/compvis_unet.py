"""Map CompVis' `UNetModel` to diffusers' `UNet2DModel` or, with cross attention, to `UNet2DConditionModel`."""

from __future__ import annotations

import torch
from torch import nn

from engines.networks.lora.original_blocks import ENDS, RESNET, SHORTCUT, original_blocks
from ptqd_export.models.compvis.compvis_config import UNetConfig
from ptqd_export.models.compvis.links import Link, below, link

_TRANSFORMER = ("norm", "proj_in", "proj_out")
_TRANSFORMER_BLOCK = (
    *(f"attn{number}.{part}" for number in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3",
)  # fmt: skip


def empty_unet(config: UNetConfig) -> nn.Module:
    """Return the network without values, on the meta device."""
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
        if isinstance(module, Attention):  # UNet2DModel takes the width of a head, not the number of heads
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
    """Link every module of `UNetModel` that has weights to its modules in diffusers."""
    places = original_blocks(network)
    resnets = places.resnets
    links = [link(source, target) for source, target in ENDS.items()]
    if config.resblock_updown:
        resnets = [*resnets, *places.downsamplers, *places.upsamplers]
    else:
        links += [link(f"{source}.op", f"{target}.conv") for source, target in places.downsamplers]
        links += [link(f"{source}.conv", f"{target}.conv") for source, target in places.upsamplers]
    for source, target in resnets:
        shortcut = SHORTCUT if network.get_submodule(target).conv_shortcut is not None else {}
        links += below(source, target, {**RESNET, **shortcut})
    attention = _transformer if config.use_spatial_transformer else _attention
    for source, target in places.attentions:
        links += attention(config, source, target, network.get_submodule(target))
    return links


def _transformer(config: UNetConfig, source: str, target: str, _: nn.Module) -> list[Link]:
    blocks = [f"transformer_blocks.{number}.{part}" for number in range(config.transformer_depth) for part in _TRANSFORMER_BLOCK]
    return below(source, target, {name: name for name in (*_TRANSFORMER, *blocks)})


def _attention(config: UNetConfig, source: str, target: str, module: nn.Module) -> list[Link]:
    projections = [f"{target}.{part}" for part in ("to_q", "to_k", "to_v")]
    heads = 1 if config.use_new_attention_order else int(module.heads)  # type: ignore[arg-type]  # of diffusers' Attention
    return [link(f"{source}.qkv", *projections, heads=heads), *below(source, target, {"norm": "group_norm", "proj_out": "to_out.0"})]
