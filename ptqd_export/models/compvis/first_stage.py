"""Map CompVis' `VQModelInterface` and `AutoencoderKL` to diffusers' `VQModel` and `AutoencoderKL`."""

from __future__ import annotations

import torch
from torch import nn

from ptqd_export.models.compvis.compvis_config import AutoencoderConfig, FirstStageConfig, VqConfig
from ptqd_export.models.compvis.links import Link, below, link

_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_HALF = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}


def empty_first_stage(config: FirstStageConfig) -> nn.Module:
    """Return the first stage without values, on the meta device."""
    from diffusers import AutoencoderKL, VQModel

    inner = config.params.ddconfig
    attends = [inner.attends(level) for level in range(len(inner.widths))]
    shared = {
        "in_channels": inner.in_channels,
        "out_channels": inner.out_ch,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if attend else "DownEncoderBlock2D" for attend in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if attend else "UpDecoderBlock2D" for attend in reversed(attends)),
        "block_out_channels": inner.widths,
        "layers_per_block": inner.num_res_blocks,
        "latent_channels": inner.z_channels,
        "sample_size": inner.resolution,
    }
    network: nn.Module
    with torch.device("meta"):
        if isinstance(config, VqConfig):
            network = VQModel(num_vq_embeddings=config.params.n_embed, vq_embed_dim=config.params.embed_dim, **shared)
        else:
            network = AutoencoderKL(**shared)
    return network


def first_stage_links(config: FirstStageConfig, network: nn.Module) -> list[Link]:
    """Link every module of the first stage that has weights to its modules in diffusers.

    The encoder is linked too, so that all tensors of the checkpoint are accounted for.
    """
    inner = config.params.ddconfig
    links = [link("quant_conv", "quant_conv"), link("post_quant_conv", "post_quant_conv")]
    links += [link("quantize.embedding", "quantize.embedding")] if isinstance(config, VqConfig) else []
    for half in ("encoder", "decoder"):
        links += below(half, half, _HALF)
        links += below(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _ATTENTION)
        for source, target in _resnets(inner, half):
            shortcut = {"nin_shortcut": "conv_shortcut"} if network.get_submodule(target).conv_shortcut is not None else {}
            links += below(source, target, _RESNET | shortcut)
    for source, target in _attentions(inner):
        links += below(source, target, _ATTENTION)
    return links + _resamplers(inner)


def _resnets(inner: AutoencoderConfig, half: str) -> list[tuple[str, str]]:
    """Pair the resnets' names. The original numbers the decoder's levels from the image too, although it runs them from the latents."""
    levels = range(len(inner.widths))
    middle = [(f"{half}.mid.block_{number + 1}", f"{half}.mid_block.resnets.{number}") for number in range(2)]
    if half == "encoder":
        return middle + [
            (f"encoder.down.{level}.block.{number}", f"encoder.down_blocks.{level}.resnets.{number}")
            for level in levels
            for number in range(inner.num_res_blocks)
        ]
    return middle + [
        (f"decoder.up.{level}.block.{number}", f"decoder.up_blocks.{levels[-1] - level}.resnets.{number}")
        for level in levels
        for number in range(inner.num_res_blocks + 1)
    ]


def _attentions(inner: AutoencoderConfig) -> list[tuple[str, str]]:
    last = len(inner.widths) - 1
    levels = [level for level in range(last + 1) if inner.attends(level)]
    down = [
        (f"encoder.down.{level}.attn.{number}", f"encoder.down_blocks.{level}.attentions.{number}")
        for level in levels
        for number in range(inner.num_res_blocks)
    ]
    up = [
        (f"decoder.up.{level}.attn.{number}", f"decoder.up_blocks.{last - level}.attentions.{number}")
        for level in levels
        for number in range(inner.num_res_blocks + 1)
    ]
    return down + up


def _resamplers(inner: AutoencoderConfig) -> list[Link]:
    last = len(inner.widths) - 1
    down = [link(f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv") for level in range(last)]
    up = [link(f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{last - level}.upsamplers.0.conv") for level in range(1, last + 1)]
    return down + up
