"""Copies of a network that do not take its memory twice."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn


def sharing_copy(network: nn.Module, without: Collection[str] = ()) -> nn.Module:
    """A copy whose modules and parameters are its own, but not their values: replaced, cast or moved they leave the network as it is;
    nothing may be written into them.

    Args:
        network: what to copy.
        without: names of parameters that are empty in the copy, since they will be replaced.
    """
    shared = {
        id(parameter): nn.Parameter(parameter.detach()[:0] if name in without else parameter.detach(), requires_grad=False)
        for name, parameter in network.named_parameters()
    }
    return copy.deepcopy(network, dict(shared))
