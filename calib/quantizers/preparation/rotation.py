"""Rotates the inputs of linear layers: `W x = (W H^T)(H x)`, which changes nothing in full precision (QuaRot: Ashkboos et al. 2024, arXiv
2404.00456).

A rotated value is a sum of many inputs, so outliers are spread over their block and a range of few bits fits all values better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from engines.networks.lora.hadamard import hadamard

BLOCKS = (256, 64, 16)
"""Sizes of the blocks of inputs that are rotated together, the best first: an outlier becomes smaller by the root of the size. The entries
of these matrices, 1/16, 1/8 and 1/4, are exact in every float type.
"""

LEAST_BLOCKS = 32
"""Fewest blocks of a layer's inputs, unless the blocks are the smallest: the cost of a rotation grows with the size of its blocks."""


def rotation_block(inputs: int) -> int | None:
    """Return the size of the blocks that a number of input channels divides into; None if there is no such size."""
    fitting = [size for size in BLOCKS if inputs % size == 0]
    return next((size for size in fitting if size * LEAST_BLOCKS <= inputs or size == BLOCKS[-1]), None)


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
        weight = rotated(layer.get_parameter("weight").detach(), size)
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.register_forward_pre_hook(_rotating(size))


def _rotating(size: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _module, args: (rotated(args[0], size), *args[1:])
