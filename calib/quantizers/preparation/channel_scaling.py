"""Equivalent channel scaling: the maker of a channel is divided by a factor, its readers are multiplied, the network computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.quantizers.preparation.channels import channel_axis

LARGEST_FACTOR = 64.0
"""Factors stay between its inverse and it: a channel that calibration saw near zero must not drown the others when it wakes up."""


@dataclass(frozen=True)
class ScalableChannels:
    """Channels with nothing between their maker and their readers but operations that commute with a factor for each channel.

    Attributes:
        producer: the module that makes them, a norm or a layer: dividing its weight and bias, channel by channel, divides them.
        first: the producer's channel that the first of them is.
        consumers: the layers that read them; their weights are [outputs, channels, ...].
    """

    producer: str
    first: int
    consumers: tuple[str, ...]


def smoothing_factors(x: Tensor, w: Tensor, exponent: float) -> Tensor:
    """`s_j = max|X_j|^a / max|W_j|^(1-a)` (SmoothQuant, arXiv 2211.10438, equation 4), divided by its geometric mean: a factor that all
    channels share changes nothing.

    Args:
        x: [channels] largest magnitude of every input channel.
        w: [channels] largest magnitude of the weights that read it.
        exponent: `a`, from 0 (equal weights) to 1 (equal activations).

    Returns:
        float32 [channels], within `LARGEST_FACTOR`; 1 where input or weights are all zero.
    """
    live = (x > 0) & (w > 0)
    if not live.any():
        return torch.ones_like(x)
    log_s = torch.where(live, exponent * x.log() - (1 - exponent) * w.log(), 0.0)
    centered = torch.where(live, log_s - log_s[live].mean(), 0.0)
    return centered.exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)


def scaling_factors(network: nn.Module, channels: ScalableChannels, x: Tensor, exponent: float) -> Tensor:
    """The factors of some channels of a network, from the largest magnitudes `x` [channels] that were observed."""
    weights = (network.get_submodule(name).get_parameter("weight").detach() for name in channels.consumers)
    w = torch.stack([weight.abs().transpose(0, 1).flatten(1).amax(1) for weight in weights]).amax(0)
    return smoothing_factors(x, w, exponent)


def scale_channels(network: nn.Module, channels: ScalableChannels, factors: Tensor) -> None:
    """Divide the producer's channels, multiply the consumers' weights. Parameters are replaced: the network may share their values."""
    rows = slice(channels.first, channels.first + len(factors))
    producer = network.get_submodule(channels.producer)
    for name, parameter in list(producer.named_parameters(recurse=False)):
        divided = parameter.detach().clone()
        divided[rows].div_(factors.reshape(-1, *[1] * (divided.ndim - 1)))
        producer.register_parameter(name, nn.Parameter(divided, requires_grad=False))
    for name in channels.consumers:
        weight = network.get_submodule(name).get_parameter("weight").detach()
        multiplied = weight * factors.reshape(-1, *[1] * (weight.ndim - 2))
        network.get_submodule(name).register_parameter("weight", nn.Parameter(multiplied, requires_grad=False))


def scaled_parameters(network: nn.Module, scaled: Iterable[ScalableChannels]) -> dict[str, Tensor]:
    """The parameters that scaling changes, by name."""
    found: dict[str, Tensor] = {}
    for channels in scaled:
        producer = network.get_submodule(channels.producer)
        found |= {f"{channels.producer}.{name}": value.detach() for name, value in producer.named_parameters(recurse=False)}
        found |= {f"{name}.weight": network.get_parameter(f"{name}.weight").detach() for name in channels.consumers}
    return found


@contextmanager
def observe_channels(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Observe the largest magnitude of every input channel of named layers while the block runs the network.

    Yields:
        float32 [channels] on the cpu, by layer; complete when the block ends.
    """
    seen: dict[str, Tensor] = {}
    handles = []
    for name in layers:
        layer = network.get_submodule(name)
        axis = channel_axis(layer)

        def before(_module: nn.Module, args: tuple[Tensor, ...], name: str = name, axis: int = axis) -> None:
            largest = args[0].detach().abs().transpose(0, axis).flatten(1).amax(1).float().cpu()
            seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

        handles.append(layer.register_forward_pre_hook(before))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
