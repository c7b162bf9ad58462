"""What the finished blocks of a network return at every calibration row, so that no block is computed again for every block after it.

A forward pass then costs what lies between the blocks and one block, and learning all blocks takes time linear in their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from calib.rounding.blocks import Block
from calib.rounding.module_calls import Forward, Inputs
from calib.rounding.row_store import RowStore, rows_like, to_numpy


@dataclass(eq=False)
class _Output:
    """What a block returns.

    Attributes:
        shape: shape of one row.
        dtype: dtype that the block returns.
        array: the rows, [samples, ...]; None once no later block needs them.
        filled: number of rows that are stored.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    array: NDArray[Any] | None
    filled: int = 0

    def put(self, rows: slice, out: Tensor) -> None:
        assert self.array is not None
        self.array[rows] = to_numpy(out)
        self.filled += len(out)

    def take(self, rows: slice, device: torch.device) -> Tensor:
        """Return the rows; NaN if nothing needs them, so that a mistake about that cannot hide."""
        if self.array is None:
            return torch.full((), torch.nan, dtype=self.dtype, device=device).expand(rows.stop - rows.start, *self.shape)
        return torch.from_numpy(np.asarray(self.array[rows])).to(device, self.dtype)


class StoredOutputs:
    """Outputs of the finished blocks of one network.

    Args:
        network: the network.
        store: allocates the arrays.
        samples: number of rows.
        last_uses: number of the last block that needs a block's output, by name; see `last_uses`.
    """

    def __init__(self, network: nn.Module, store: RowStore, samples: int, last_uses: Mapping[str, int]) -> None:
        self._network = network
        self._store = store
        self._samples = samples
        self._last_uses = last_uses
        self._outputs: dict[str, _Output] = {}

    @contextlib.contextmanager
    def instead_of(self, finished: Sequence[Block], rows: slice, device: torch.device) -> Iterator[None]:
        """While the network runs on these rows, finished blocks return what is stored. Those of which nothing is stored run, and it is
        stored what they return.
        """
        with contextlib.ExitStack() as stack:
            for block in finished:
                module, output = self._network.get_submodule(block.name), self._outputs.get(block.name)
                if output is not None and (output.array is None or output.filled == self._samples):
                    stack.enter_context(_returning(module, partial(output.take, rows, device)))
                else:
                    stack.enter_context(module.register_forward_hook(partial(self._keep, block, rows)))
            yield

    def keep(self, block: Block, rows: slice, out: Tensor) -> None:
        """Store what a block returned for these rows."""
        if block.name not in self._outputs:
            self._outputs[block.name] = _Output(tuple(out.shape[1:]), out.dtype, rows_like(self._store, out, self._samples))
        self._outputs[block.name].put(rows, out)

    def array(self, block: Block) -> NDArray[Any]:
        """Return the stored rows of a block, float32 [samples, ...]."""
        array = self._outputs[block.name].array
        assert array is not None
        return array

    def forget(self, number: int) -> None:
        """Free what no block from this number on needs."""
        for name, output in self._outputs.items():
            if output.array is not None and self._last_uses[name] < number:
                self._store.free(output.array)
                output.array = None

    def _keep(self, block: Block, rows: slice, _module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
        self.keep(block, rows, out)


def last_uses(network: nn.Module, blocks: Sequence[Block], forward: Forward, inputs: Inputs) -> dict[str, int]:
    """Return the number of the last block whose arguments depend on a block's output by a way that leads through no other block; the
    block's own number if there is none.

    Found by running two rows with NaN for one block's output and the true output of every other, once for every block.
    """
    rows = tuple(value[:2] for value in inputs)
    outputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for block in blocks:
            stack.enter_context(network.get_submodule(block.name).register_forward_hook(partial(_remember, outputs, block.name)))
        forward(network, rows)
    return {block.name: _last_use(network, blocks, number, outputs, partial(forward, network, rows)) for number, block in enumerate(blocks)}


def _remember(outputs: dict[str, Tensor], name: str, _module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
    outputs[name] = out


def _last_use(network: nn.Module, blocks: Sequence[Block], number: int, outputs: Mapping[str, Tensor], run: Callable[[], object]) -> int:
    users = {number}

    def watch(user: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if has_nan((args, kwargs)):
            users.add(user)

    with contextlib.ExitStack() as stack, torch.no_grad():
        for other, block in enumerate(blocks):
            module, out = network.get_submodule(block.name), outputs[block.name]
            result = torch.full_like(out, torch.nan) if other == number else out
            stack.enter_context(module.register_forward_pre_hook(partial(watch, other), with_kwargs=True))
            stack.enter_context(_returning(module, result.clone))
        run()
    return max(users)


def has_nan(arguments: object) -> bool:
    """Whether any tensor among a module's arguments has NaN."""
    return any(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(torch.isnan(leaf).any()) for leaf in tree_flatten(arguments)[0]
    )


@contextlib.contextmanager
def _returning(module: nn.Module, result: Callable[[], Tensor]) -> Iterator[None]:
    """Make a module return a result without computing anything. Its hooks still run, but what they return does not count: the result was
    stored behind them.
    """
    held: list[Tensor] = []

    def forward(*_args: object, **_kwargs: object) -> Tensor:
        held.append(result())
        return held[-1]

    handle = module.register_forward_hook(lambda *_call: held.pop())
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        handle.remove()
