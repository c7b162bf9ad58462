"""Finds the channel axis of a layer's input."""

from __future__ import annotations

from torch import nn


def channel_axis(layer: nn.Module) -> int:
    """1 for a convolution, whose input is [batch, channels, ...]; -1 for a linear layer, whose input is [..., channels]."""
    return 1 if layer.get_parameter("weight").ndim > 2 else -1
