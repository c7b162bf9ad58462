"""Rotates the inputs of linear layers: `W x = (W H^T)(H x)`, which changes nothing in full precision (QuaRot: Ashkboos et al. 2024, arXiv
2404.00456).

A rotated value is a sum of many inputs, so outliers are spread over their block and a range of few bits fits all values better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engines.networks.lora.hadamard import hadamard

BLOCKS = (256, 64, 16)
"""Sizes of the blocks of inputs that are rotated together, the best first: an outlier becomes smaller by the root of the size. The entries
of these matrices, 1/16, 1/8 and 1/4, are exact in every float type.
"""

FOLDED = (8, 256)
"""Smallest and largest size of the blocks of a rotation that the layer before does: no cost limits them."""

LEAST_BLOCKS = 32
"""Fewest blocks of a layer's inputs, unless the blocks are the smallest: the cost of a rotation grows with the size of its blocks."""


def rotation_block(inputs: int) -> int | None:
    """Return the size of the blocks that a number of input channels divides into; None if there is no such size."""
    fitting = [size for size in BLOCKS if inputs % size == 0]
    return next((size for size in fitting if size * LEAST_BLOCKS <= inputs or size == BLOCKS[-1]), None)


def folded_block(channels: int) -> int | None:
    """Return the size of the blocks of a folded rotation, the largest power of two that divides the channels of a head; None if it is too
    small.
    """
    least, most = FOLDED
    size = min(channels & -channels, most)
    return size if size >= least else None


@dataclass(frozen=True)
class FoldedRotation:
    """A rotation that a linear layer does to its outputs for the layers that read them: `W_2 f(W_1 x) = (W_2 H^T) f(H W_1 x)`, where `f`
    treats the channels of a block alike.

    Attributes:
        producer: the layer before.
        first, channels: the rotated channels among its outputs.
        size: size of the blocks.
        consumers: layers whose inputs these channels are.
    """

    producer: str
    first: int
    channels: int
    size: int
    consumers: tuple[str, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that change, of which a producer without bias lacks one."""
        return (f"{self.producer}.weight", f"{self.producer}.bias", *(f"{name}.weight" for name in self.consumers))


def fold_rotation(network: nn.Module, folded: FoldedRotation) -> None:
    """Rotate the outputs of a layer and the weights that read them. Parameters are replaced, as in `rotate_inputs`."""
    rows = slice(folded.first, folded.first + folded.channels)
    producer = network.get_submodule(folded.producer)
    for name, parameter in list(producer.named_parameters(recurse=False)):
        changed = parameter.detach().clone()
        changed[rows] = rotated(changed[rows].movedim(0, -1), folded.size).movedim(-1, 0)
        producer.register_parameter(name, nn.Parameter(changed, requires_grad=False))
    for name in folded.consumers:
        _rotate_weight(network.get_submodule(name), folded.size)


def rotated(x: Tensor, size: int) -> Tensor:
    """Return `x` [..., channels] with every block of channels rotated; twice gives `x` back."""
    blocks = x.reshape(*x.shape[:-1], -1, size)
    return torch.matmul(blocks, torch.from_numpy(hadamard(size)).to(x)).reshape(x.shape)


def rotate_inputs(network: nn.Module, blocks: Mapping[str, int]) -> None:
    """Let linear layers rotate their inputs before anything else, and rotate their weights to match.

    Parameters are replaced rather than written into, because the network may share their values.

    Args:
        network: network to change.
        blocks: size of the blocks of each layer's input, by the layer's name.
    """
    for name, size in blocks.items():
        layer = network.get_submodule(name)
        _rotate_weight(layer, size)
        layer.register_forward_pre_hook(_rotating(size))


def _rotate_weight(layer: nn.Module, size: int) -> None:
    weight = rotated(layer.get_parameter("weight").detach(), size)
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def _rotating(size: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _module, args: (rotated(args[0], size), *args[1:])
