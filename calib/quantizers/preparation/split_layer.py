"""Splits layers along their input channels, so that each part of a concatenation is quantized with its own range."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from calib.quantizers.preparation.channels import channel_axis


class SplitLayer(nn.Module):
    """A convolution or linear layer as a sum of layers, one for each part of its input channels: `W [x0, x1] + b = (W0 x0 + b) + W1 x1`
    (Q-Diffusion, arXiv 2302.04304, section 4.2).

    Args:
        layer: an ungrouped convolution, or a linear layer.
        sizes: number of channels of each part; they add up to the layer's input channels.
    """

    def __init__(self, layer: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.axis = channel_axis(layer)
        ends = list(accumulate(sizes))
        self.parts = nn.ModuleList(_part(layer, end - size, end) for size, end in zip(sizes, ends, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (part(piece) for part, piece in zip(self.parts, x.split(self.sizes, self.axis), strict=True))
        out: Tensor = sum(others, start=first)
        return out


def _part(layer: nn.Module, begin: int, end: int) -> nn.Module:
    """Part of the layer for the input channels from `begin` to `end`. The first part keeps the bias."""
    part = copy.deepcopy(layer)
    weight = layer.get_parameter("weight").detach()[:, begin:end]
    part._parameters["weight"] = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if begin > 0:
        part._parameters["bias"] = None
    setattr(part, "in_features" if isinstance(layer, nn.Linear) else "in_channels", end - begin)
    return part


def split_layers(network: nn.Module, parts: Mapping[str, Sequence[int]]) -> None:
    """Replace the named layers of a network with a `SplitLayer`: `<name>` becomes `<name>.parts.0`, `<name>.parts.1`, ..."""
    for name, sizes in parts.items():
        network.set_submodule(name, SplitLayer(network.get_submodule(name), sizes))


def part_name(name: str, index: int) -> str:
    """Name of one part of a split layer."""
    return f"{name}.parts.{index}"


def whole_name(name: str) -> str:
    """Name of the layer that a part belongs to; the name of any other layer is returned unchanged."""
    return re.sub(r"\.parts\.\d+$", "", name)
