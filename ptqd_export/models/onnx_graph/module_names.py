"""Places of parts in the tree of a module: names of a graph may have any characters, and may be used twice."""

from __future__ import annotations

import re

from torch import nn


class ModuleTree:
    """Puts layers and constants of a graph into a module under names like those of a state dict.

    Args:
        root: module to add to.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root

    def add_layer(self, name: str, layer: nn.Module) -> str:
        """Add a layer; return its place, which is the name if that is a valid place and still free."""
        parent, last, place = self._place(name)
        parent.add_module(last, layer)
        return place

    def add_constant(self, name: str, value: nn.Parameter) -> str:
        """Add a constant; return its place, which is the name if that is a valid place and still free."""
        parent, last, place = self._place(name)
        parent.register_parameter(last, value)
        return place

    def _place(self, name: str) -> tuple[nn.Module, str, str]:
        parts = [re.sub(r"\W+", "_", part).strip("_") or "_" for part in name.split(".") if part] or ["_"]
        parent, path = self._root, list[str]()
        for part in parts[:-1]:
            parent, found = self._container(parent, part)
            path.append(found)
        last = _free(parent, parts[-1])
        return parent, last, ".".join([*path, last])

    def _container(self, parent: nn.Module, name: str) -> tuple[nn.Module, str]:
        existing = parent._modules.get(name)
        if existing is not None and type(existing) is Scope:
            return existing, name
        name = _free(parent, name)
        parent.add_module(name, Scope())
        return parent.get_submodule(name), name


class Scope(nn.Module):
    """A part of a network that only has names: its graph is flat, so it is never called."""


def _free(parent: nn.Module, name: str) -> str:
    """Return the name, or the first one with a number behind it that the module has no attribute of."""
    found, number = name, 2
    while hasattr(parent, found):
        found, number = f"{name}_{number}", number + 1
    return found
