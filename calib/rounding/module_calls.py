"""Runs a network to find out how it calls its modules, so that nothing needs to be known about the model family."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten  # as torch.export and functorch flatten arguments

Inputs: TypeAlias = tuple[Tensor, ...]
"""Arguments of a network, each with one row per sample."""

Forward: TypeAlias = Callable[[nn.Module, Inputs], object]
"""Runs a network or its copy on inputs."""


@dataclass(frozen=True)
class ModuleCall:
    """How one forward pass of the network calls a module.

    Attributes:
        order: rank among the first calls of the observed modules.
        times: calls per forward pass.
        batched: for each leaf of `(args, kwargs)` of the call, whether it is a tensor with one row per sample.
        tensor_out: whether the result is one tensor with one row per sample.
    """

    order: int
    times: int
    batched: tuple[bool, ...]
    tensor_out: bool

    @property
    def separable(self) -> bool:
        """Whether the module can run alone on stored rows."""
        return self.times == 1 and self.tensor_out and any(self.batched)


@dataclass
class _Seen:
    """First call of a module: number of rows of each argument and of the result, None for values without rows."""

    times: int = 0
    rows_in: list[int | None] = field(default_factory=list)
    rows_out: int | None = None


def module_calls(network: nn.Module, names: Collection[str], forward: Forward, inputs: Inputs) -> dict[str, ModuleCall]:
    """Return the calls of the named modules, in the order in which they begin. Modules that are never called are left out.

    Runs the network on two batch sizes: a value with one row per sample changes its number of rows with the batch size.
    """
    two, three = (_watch(network, names, partial(forward, network, _resized(inputs, size))) for size in (2, 3))
    return {
        name: ModuleCall(
            order=order,
            times=first.times,
            batched=tuple(rows == (2, 3) for rows in zip(first.rows_in, three[name].rows_in, strict=True)),
            tensor_out=(first.rows_out, three[name].rows_out) == (2, 3),
        )
        for order, (name, first) in enumerate(two.items())
    }


def _watch(network: nn.Module, names: Collection[str], run: Callable[[], object]) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}

    def before(name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = seen.setdefault(name, _Seen())
        call.times += 1
        if call.times == 1:
            call.rows_in = [_rows(leaf) for leaf in tree_flatten((args, kwargs))[0]]

    def after(name: str, _module: nn.Module, _args: tuple[Any, ...], out: object) -> None:
        seen[name].rows_out = _rows(out)

    handles = []
    for name in names:
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(after, name)))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _resized(inputs: Inputs, size: int) -> Inputs:
    return tuple(value[torch.arange(size) % len(value)] for value in inputs)


def _rows(value: object) -> int | None:
    return len(value) if isinstance(value, Tensor) and value.ndim else None
