"""Finds blocks, the layers that are reconstructed together, from the module tree alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from calib.rounding.module_calls import ModuleCall

MOST_LAYERS = 24
"""A module with more layers than this is split into its children: it is a network rather than a block."""

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Block:
    """Layers that are reconstructed together.

    Attributes:
        name: name of the module whose output is to be preserved; "" is the whole network.
        layers: names of the layers inside, in the order of the module tree.
        batched: see `ModuleCall`.
    """

    name: str
    layers: tuple[str, ...]
    batched: tuple[bool, ...]


def candidates(network: nn.Module, layers: Collection[str]) -> list[str]:
    """Names of all modules that contain one of the layers or are one."""
    return [name for name, _ in network.named_modules() if any(_within(layer, name) for layer in layers)]


def find_blocks(network: nn.Module, layers: Collection[str], calls: Mapping[str, ModuleCall]) -> list[Block]:
    """Return the blocks in the order in which the network runs them. Layers outside of any block become blocks of their own.

    Going down from the root, a module is a block if

    1. it can run alone: a forward pass calls it once, with one row per sample, and it returns one tensor with one row per sample;
    2. it contains several of the layers, but at most `MOST_LAYERS`;
    3. no list in it (ModuleList, ModuleDict, Sequential) has a child with several of the layers. Networks keep repeated parts in lists, so
       the children of such a list are the smaller blocks. The lists inside a residual or transformer block hold single layers.

    Layers that rule 1 excludes are in no block.
    """
    found = list(_descend(network, "", layers, calls))
    return sorted(found, key=lambda block: calls[block.name].order)


def single_layers(layers: Collection[str], calls: Mapping[str, ModuleCall]) -> list[Block]:
    """Return every layer as a block of its own, in the order in which the network runs them."""
    alone = [name for name in layers if name in calls and calls[name].separable]
    return [Block(name, (name,), calls[name].batched) for name in sorted(alone, key=lambda name: calls[name].order)]


def _descend(network: nn.Module, name: str, layers: Collection[str], calls: Mapping[str, ModuleCall]) -> Iterator[Block]:
    inside = tuple(layer for layer in layers if _within(layer, name))
    if not inside:
        return
    module = network.get_submodule(name)
    whole = inside == (name,) or _is_block(module, [layer.removeprefix(f"{name}.") for layer in inside])
    if whole and name in calls and calls[name].separable:
        yield Block(name, inside, calls[name].batched)
        return
    for child, _ in module.named_children():
        yield from _descend(network, _joined(name, child), layers, calls)


def _is_block(module: nn.Module, inside: Collection[str]) -> bool:
    """Whether rules 2 and 3 hold. `inside` has the layers' names within the module."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, _LISTS)]
    repeated = [_joined(name, child) for name, part in lists for child, _ in part.named_children()]
    return 2 <= len(inside) <= MOST_LAYERS and all(sum(_within(layer, child) for layer in inside) < 2 for child in repeated)


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _within(layer: str, module: str) -> bool:
    return not module or layer == module or layer.startswith(f"{module}.")
