"""Samples the rows of a layer's input: the vectors whose products with the weights are its outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

ROW_VALUES = 2**17
"""Values in the rows kept per layer, unless these would be fewer or more rows than the following."""
LEAST_ROWS, MOST_ROWS = 32, 256


def row_count(layer: nn.Module) -> int:
    """Return the number of rows to keep of a layer's input. Rows of large layers are long, and fewer of them tell as much."""
    return rows_of(layer.get_parameter("weight")[0].numel() * getattr(layer, "groups", 1))


def rows_of(values: int) -> int:
    """Return the number of rows to keep that have this many values each."""
    return min(MOST_ROWS, max(LEAST_ROWS, ROW_VALUES // values))


def input_rows(layer: nn.Module, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows of a layer's input, drawn with replacement.

    Args:
        layer: a linear layer, or a convolution of any number of dimensions.
        x: input of the layer.
        count: number of rows.
        generator: CPU generator that draws the rows.

    Returns:
        float32 [count, groups, inputs] on the CPU: for each group of channels (one, except in grouped convolutions), the values that one
        output position is computed from, in the order of the flattened weight [channels, inputs] of the group.
    """
    x = x.detach()
    if isinstance(layer, nn.Linear):
        flat = x.reshape(-1, x.shape[-1])
        return flat[_drawn(len(flat), count, generator, x.device)].float().cpu()[:, None]
    assert isinstance(layer, nn.modules.conv._ConvNd)
    patches = _patches(layer, x)  # [batch, channels, *positions, *kernel]
    positions = patches.shape[:1] + patches.shape[2 : x.ndim]
    drawn = torch.unravel_index(_drawn(math.prod(positions), count, generator, x.device), positions)
    rows = patches.movedim(1, x.ndim - 1)[drawn]  # [count, channels, *kernel]
    return rows.reshape(count, layer.groups, -1).float().cpu()


def _patches(layer: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """View the padded input as what every output position reads, [batch, channels, *positions, *kernel]."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2):
        patches = patches.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return patches


def _drawn(total: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(total, (count,), generator=generator).to(device)
