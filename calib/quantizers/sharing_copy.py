"""Copies a network without copying the values of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn


def sharing_copy(network: nn.Module, without: Collection[str] = ()) -> nn.Module:
    """Return a copy with its own modules and parameters that shares the parameters' values. Replacing, casting or moving them leaves the
    network unchanged, but nothing may be written into them.

    Args:
        network: network to copy.
        without: names of parameters that are empty in the copy, because they will be replaced.
    """
    shared = {
        id(parameter): nn.Parameter(parameter.detach()[:0] if name in without else parameter.detach(), requires_grad=False)
        for name, parameter in network.named_parameters()
    }
    return copy.deepcopy(network, dict(shared))
