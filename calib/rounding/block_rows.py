"""Stores the inputs and outputs of a block at every calibration sample, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from calib.rounding.blocks import Block
from calib.rounding.module_calls import Forward, Inputs
from calib.rounding.row_store import RowStore

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a module."""


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass whose rest is not needed
    pass


class StoredArguments:
    """A block's arguments at every sample. Arguments without one row per sample are stored once.

    Args:
        store: allocates the arrays.
        block: the block that takes the arguments.
        first: arguments of the first batch.
        samples: total number of rows.
    """

    def __init__(self, store: RowStore, block: Block, first: Arguments, samples: int) -> None:
        leaves, self._spec = tree_flatten(first)
        self._batched = block.batched
        self._leaves = [_rows_like(store, leaf, samples) if batched else leaf for leaf, batched in zip(leaves, self._batched, strict=True)]

    def put(self, rows: slice, arguments: Arguments) -> None:
        for kept, leaf, batched in zip(self._leaves, tree_flatten(arguments)[0], self._batched, strict=True):
            if batched:
                kept[rows] = _numpy(leaf)

    def take(self, rows: NDArray[np.int64], device: torch.device) -> Arguments:
        """Return the arguments at these samples, copied to the device."""
        leaves = [
            torch.from_numpy(np.asarray(leaf[rows])).to(device) if batched else leaf
            for leaf, batched in zip(self._leaves, self._batched, strict=True)
        ]
        args, kwargs = tree_unflatten(leaves, self._spec)
        return args, kwargs


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Arguments of a block in the network quantized so far, and the block's full-precision output, float32 [samples, ...]."""

    arguments: StoredArguments
    target: NDArray[Any]


@dataclass(frozen=True)
class BlockNetworks:
    """The full-precision network, a copy in which every block before the current one is quantized, and how to run either."""

    reference: nn.Module
    quantized: nn.Module
    forward: Forward


def collect(
    block: Block,
    networks: BlockNetworks,
    inputs: Inputs,
    batch_size: int,
    device: torch.device,
    store: RowStore,
    on_batch: Callable[[], None] = lambda: None,
) -> BlockRows:
    """Run both networks up to the block, batch by batch on the device. Modules after the block are not run."""
    samples = len(inputs[0])
    kept: BlockRows | None = None
    for begin in range(0, samples, batch_size):
        rows = slice(begin, min(begin + batch_size, samples))
        batch = tuple(value[rows].to(device) for value in inputs)
        arguments = arguments_at(block, networks.quantized, networks.forward, batch)
        out = output_of(block, networks.reference, networks.forward, batch)
        if kept is None:
            kept = BlockRows(StoredArguments(store, block, arguments, samples), _rows_like(store, out, samples))
        kept.arguments.put(rows, arguments)
        kept.target[rows] = _numpy(out)
        on_batch()
    assert kept is not None
    return kept


def arguments_at(block: Block, network: nn.Module, forward: Forward, batch: Inputs) -> Arguments:
    """Run a network until it enters the block; return the block's arguments."""
    met: list[Arguments] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        met.append((args, kwargs))
        raise _Reached

    _run(network.get_submodule(block.name).register_forward_pre_hook(enter, with_kwargs=True), network, forward, batch)
    return met[0]


def output_of(block: Block, network: nn.Module, forward: Forward, batch: Inputs) -> Tensor:
    """Run a network until it leaves the block; return the block's output."""
    met: list[Tensor] = []

    def leave(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
        met.append(out)
        raise _Reached

    _run(network.get_submodule(block.name).register_forward_hook(leave), network, forward, batch)
    return met[0]


def _run(until: RemovableHandle, network: nn.Module, forward: Forward, batch: Inputs) -> None:
    with until, torch.no_grad(), contextlib.suppress(_Reached):
        forward(network, batch)


def _rows_like(store: RowStore, batch: Tensor, samples: int) -> NDArray[Any]:
    return store.empty((samples, *batch.shape[1:]), _numpy(batch[:0]).dtype)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to the CPU, floats as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
