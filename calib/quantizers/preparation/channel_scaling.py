"""Equivalent channel scaling: divides the producer of a channel by a factor and multiplies its consumers; the output does not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.quantizers.preparation.channels import channel_axis

LARGEST_FACTOR = 64.0
"""Factors lie between the inverse of this and this: a channel that calibration saw near zero must not drown out the others later."""


@dataclass(frozen=True)
class ScalableChannels:
    """Channels with only operations between producer and consumers that commute with a factor per channel.

    Attributes:
        producer: module that produces the channels, a norm or a layer: dividing its weight and bias channel by channel divides them.
        first: index of the first of these channels among the producer's channels.
        consumers: layers that read the channels; their weights are [outputs, channels, ...].
    """

    producer: str
    first: int
    consumers: tuple[str, ...]


def smoothing_factors(x: Tensor, w: Tensor, exponent: float) -> Tensor:
    """`s_j = max|X_j|^a / max|W_j|^(1-a)` (SmoothQuant, arXiv 2211.10438, equation 4), divided by the geometric mean of all `s_j`, because
    a factor common to all channels changes nothing.

    Args:
        x: [channels] largest magnitude of each input channel.
        w: [channels] largest magnitude of the weights that read the channel.
        exponent: `a`, from 0 (equal weights) to 1 (equal activations).

    Returns:
        float32 [channels], limited by `LARGEST_FACTOR`; 1 where the input or the weights are all zero.
    """
    live = (x > 0) & (w > 0)
    if not live.any():
        return torch.ones_like(x)
    log_s = torch.where(live, exponent * x.log() - (1 - exponent) * w.log(), 0.0)
    centered = torch.where(live, log_s - log_s[live].mean(), 0.0)
    return centered.exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)


def scaling_factors(network: nn.Module, channels: ScalableChannels, x: Tensor, exponent: float) -> Tensor:
    """Return the factors for some channels of a network, given their largest observed magnitudes `x` [channels]."""
    weights = (network.get_submodule(name).get_parameter("weight").detach() for name in channels.consumers)
    w = torch.stack([weight.abs().transpose(0, 1).flatten(1).amax(1) for weight in weights]).amax(0)
    return smoothing_factors(x, w, exponent)


def scale_channels(network: nn.Module, channels: ScalableChannels, factors: Tensor) -> None:
    """Divide the producer's channels and multiplies the consumers' weights.

    Parameters are replaced rather than written into, because the network may share their values.
    """
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
    """Return the parameters that scaling changes, by name."""
    found: dict[str, Tensor] = {}
    for channels in scaled:
        producer = network.get_submodule(channels.producer)
        found |= {f"{channels.producer}.{name}": value.detach() for name, value in producer.named_parameters(recurse=False)}
        found |= {f"{name}.weight": network.get_parameter(f"{name}.weight").detach() for name in channels.consumers}
    return found


@contextmanager
def observe_channels(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Observe the largest magnitude of each input channel of the named layers while the `with` block runs the network.

    Yields:
        float32 [channels] on the CPU, by layer; complete when the block ends.
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
