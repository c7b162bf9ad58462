"""Stores the inputs and outputs of a block at every calibration sample, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from calib.rounding.blocks import Block
from calib.rounding.module_calls import Forward, Inputs
from calib.rounding.row_store import RowStore, rows_like, to_numpy
from calib.rounding.stored_outputs import StoredOutputs, has_nan, last_uses

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
        self._leaves = [rows_like(store, leaf, samples) if batched else leaf for leaf, batched in zip(leaves, self._batched, strict=True)]

    def put(self, rows: slice, arguments: Arguments) -> None:
        for kept, leaf, batched in zip(self._leaves, tree_flatten(arguments)[0], self._batched, strict=True):
            if batched:
                kept[rows] = to_numpy(leaf)

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
    """The full-precision network, a copy in which every block before the current one is quantized, and how to run either.

    Attributes:
        reference, quantized: the networks.
        forward: runs either.
        exact, approximate: what the finished blocks of `reference` and of `quantized` return.
    """

    reference: nn.Module
    quantized: nn.Module
    forward: Forward
    exact: StoredOutputs
    approximate: StoredOutputs

    @classmethod
    def of(
        cls, reference: nn.Module, quantized: nn.Module, forward: Forward, blocks: Sequence[Block], inputs: Inputs, store: RowStore
    ) -> Self:
        """Return two networks whose blocks nothing is stored of yet.

        Args:
            reference, quantized: the networks, on the device where they run.
            forward: runs either.
            blocks: all blocks, in the order in which they run.
            inputs: inputs of all calibration rows.
            store: allocates the arrays for what blocks return.
        """
        device = next(reference.parameters()).device
        uses = last_uses(reference, blocks, forward, tuple(value[:2].to(device) for value in inputs))
        exact, approximate = (StoredOutputs(network, store, len(inputs[0]), uses) for network in (reference, quantized))
        return cls(reference, quantized, forward, exact, approximate)


def collect(
    blocks: Sequence[Block],
    networks: BlockNetworks,
    inputs: Inputs,
    batch_size: int,
    device: torch.device,
    store: RowStore,
    on_batch: Callable[[], None] = lambda: None,
) -> BlockRows:
    """Run both networks up to the last of the blocks, batch by batch on the device. Modules after it are not run, and the blocks before it
    return what they returned for the blocks after them.
    """
    *finished, block = blocks
    samples = len(inputs[0])
    arguments: StoredArguments | None = None
    for begin in range(0, samples, batch_size):
        rows = slice(begin, min(begin + batch_size, samples))
        batch = tuple(value[rows].to(device) for value in inputs)
        with networks.approximate.instead_of(finished, rows, device):
            met = arguments_at(block, networks.quantized, networks.forward, batch)
        with networks.exact.instead_of(finished, rows, device):
            networks.exact.keep(block, rows, output_of(block, networks.reference, networks.forward, batch))
        if has_nan(met):
            raise RuntimeError(f"Block {block.name} would learn from NaN.")
        if arguments is None:
            arguments = StoredArguments(store, block, met, samples)
        arguments.put(rows, met)
        on_batch()
    assert arguments is not None
    target = networks.exact.array(block)
    for outputs in (networks.exact, networks.approximate):
        outputs.forget(len(finished))
    return BlockRows(arguments, target)


def arguments_at(block: Block, network: nn.Module, forward: Forward, batch: Inputs) -> Arguments:
    """Run a network until it enters the block; return the block's arguments, before hooks of the block change them."""
    met: list[Arguments] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        met.append((args, kwargs))
        raise _Reached

    entered = network.get_submodule(block.name).register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    _run(entered, network, forward, batch)
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
