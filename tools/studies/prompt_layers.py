"""Count what it costs to keep the layers that read a prompt in float: their share of the products and of the weights of large U-Nets.

    python -m tools.studies.prompt_layers

The networks have shapes and no values, so this takes little time and memory. A run time that computes these layers once a chain pays
nothing for them. One that computes them at every step pays the first share of the time of its products, times what a product takes longer
in float than in integers. The table of placements says what each target does (`condition` in `calib/quantizers/rules/placement.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ptqd_export.models.base import Adapter
from ptqd_export.models.conditions import EMBEDDINGS, POOLED, TIME_IDS
from ptqd_export.models.diffusers_models.diffusers_unet import DiffusersAdapter

HEADER = ("U-Net", "layers", "products", "share of all products", "weights", "share of all weights", "keys and values")

TOKENS = 77


@dataclass(frozen=True)
class PromptLayers:
    """What the layers that read conditions alone have in a network, for one sample.

    Attributes:
        layers: number of these layers.
        macs: their multiply-accumulates.
        macs_share: share of the network's multiply-accumulates, those of attention included.
        weights: number of their weights.
        weights_share: share of the network's parameters.
        values: number of values that they give.
    """

    layers: int
    macs: int
    macs_share: float
    weights: int
    weights_share: float
    values: int


@dataclass(frozen=True)
class UNet:
    """A published U-Net.

    Attributes:
        config: arguments of `UNet2DConditionModel`.
        conditions: shape of each conditioning input for one sample.
    """

    config: Mapping[str, Any]
    conditions: Mapping[str, tuple[int, ...]]

    def adapter(self) -> Adapter:
        """Return the network on the device `meta`."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            return DiffusersAdapter(UNet2DConditionModel(in_channels=4, out_channels=4, **self.config), tuple(self.conditions))


NETWORKS: Mapping[str, UNet] = MappingProxyType(
    {
        "Stable Diffusion 1.5, 512 x 512": UNet(
            {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
            {EMBEDDINGS: (TOKENS, 768)},
        ),
        "SDXL, 1024 x 1024": UNet(
            {
                "sample_size": 128,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (320, 640, 1280),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            {EMBEDDINGS: (TOKENS, 2048), POOLED: (1280,), TIME_IDS: (6,)},
        ),
    }
)


def prompt_layers(adapter: Adapter, shape: tuple[int, ...], conditions: Mapping[str, tuple[int, ...]]) -> PromptLayers:
    """Count the layers that read conditions alone and give more than a vector.

    What depends on the state requires a gradient, because the state does.

    Args:
        adapter: network on the device `meta`, whose parameters require no gradient.
        shape: shape of the state [channels, height, width].
        conditions: shape of each conditioning input for one sample.
    """
    found: dict[nn.Module, Tensor] = {}

    def look(module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if not out.requires_grad and out.ndim > 2:
            found[module] = out

    hooks = [module.register_forward_hook(look) for module in adapter.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    sample = torch.empty(1, *shape, device="meta", requires_grad=True)
    given = [torch.empty(1, *sides, device="meta") for sides in conditions.values()]
    with FlopCounterMode(display=False) as counter:
        adapter(sample, torch.empty(1, device="meta"), *given)
    for hook in hooks:
        hook.remove()
    weights = [module.get_parameter("weight") for module in found]
    macs = sum(out.numel() * weight[0].numel() for out, weight in zip(found.values(), weights, strict=True))
    count = sum(weight.numel() for weight in weights)
    return PromptLayers(
        layers=len(found),
        macs=macs,
        macs_share=2 * macs / counter.get_total_flops(),
        weights=count,
        weights_share=count / sum(parameter.numel() for parameter in adapter.parameters()),
        values=sum(out.numel() for out in found.values()),
    )


def row(name: str, found: PromptLayers) -> tuple[str, ...]:
    """Format one row of the table."""
    return (
        name, str(found.layers), f"{found.macs / 1e9:.1f} G", f"{found.macs_share:.2%}", f"{found.weights / 1e6:.0f} M",
        f"{found.weights_share:.1%}", f"{found.values / 1e6:.1f} M",
    )  # fmt: skip


@click.command()
def main() -> None:
    rows = []
    for name, unet in NETWORKS.items():
        size = unet.config["sample_size"]
        rows.append(row(name, prompt_layers(unet.adapter(), (4, size, size), unet.conditions)))
    click.echo(f"| {' | '.join(HEADER)} |\n|{' --- |' + ' ---: |' * (len(HEADER) - 1)}")
    for line in rows:
        click.echo(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
