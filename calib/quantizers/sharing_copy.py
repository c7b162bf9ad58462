"""Copies a network without copying the values of its parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn


def sharing_copy(network: nn.Module, without: Collection[str] = ()) -> nn.Module:
    """Return a copy with its own modules, parameters and buffers that shares their values. Replacing, casting or moving them leaves the
    network unchanged, but nothing may be written into them.

    Args:
        network: network to copy.
        without: names of parameters that are empty in the copy, because they will be replaced.
    """
    shared: dict[int, Any] = {id(buffer): buffer.detach() for _, buffer in network.named_buffers()}
    shared |= {
        id(parameter): nn.Parameter(parameter.detach()[:0] if name in without else parameter.detach(), requires_grad=False)
        for name, parameter in network.named_parameters()
    }
    return copy.deepcopy(network, shared)
