"""Samples the inputs of a network's attention while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calib.quantizers.attention.attention_call import AttentionCall, AttentionCalls
from calib.quantizers.attention.quantized_attention import INPUTS
from calib.quantizers.observers import VALUES_A_TENSOR, ObservedActivations


@dataclass(frozen=True)
class AttentionSite:
    """One attention of a network: the name of the module that calls it, and the multiply-accumulates of its products per sample."""

    name: str
    macs: int


class AttentionObserver:
    """Observes attention in several runs of a network.

    Args:
        calls: number of runs.

    Attributes:
        sites: every attention, in the order of its calls.
        seen: observations by `<name>.query`, `<name>.key` and `<name>.value`; query and key with the root of their scale.
    """

    def __init__(self, network: nn.Module, calls: int) -> None:
        self.sites: list[AttentionSite] = []
        self.seen: dict[str, ObservedActivations] = {}
        self._network = network
        self._count = max(1, VALUES_A_TENSOR // calls)
        self._generator = torch.Generator().manual_seed(0)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Observe one run of the network inside the `with` block."""
        with _running(self._network) as path, AttentionCalls(lambda number, call: self._add(number, call, path)):
            yield

    def _add(self, number: int, call: AttentionCall, path: list[str]) -> None:
        if number == len(self.sites):
            self.sites.append(AttentionSite(self._unused(path[-1] if path else "attention"), call.macs))
        values = (call.scaled_query, call.scaled_key, call.value)
        for part, value in zip(INPUTS, values, strict=True):
            observed = self.seen.setdefault(f"{self.sites[number].name}.{part}", ObservedActivations())
            observed.add(value, self._count, self._generator)

    def _unused(self, name: str) -> str:
        """Return the name, with a number behind it for a module that calls attention more than once."""
        known = sum(site.name.partition("#")[0] == name for site in self.sites)
        return f"{name}#{known + 1}" if known else name


@contextmanager
def _running(network: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the modules that are running, the innermost last."""
    path: list[str] = []

    def entering(name: str) -> Callable[..., None]:
        def enter(_module: nn.Module, _args: Any) -> None:
            path.append(name)

        return enter

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        path.pop()

    handles = [module.register_forward_pre_hook(entering(name)) for name, module in network.named_modules() if name]
    handles += [module.register_forward_hook(leave) for name, module in network.named_modules() if name]
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()
