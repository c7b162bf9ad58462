"""Blocks that are finished are not computed again, and the blocks after them get what they would get if they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calib.rounding.block_rows import BlockNetworks, arguments_at, collect, output_of
from calib.rounding.blocks import Block
from calib.rounding.module_calls import Inputs
from calib.rounding.row_store import RowStore
from calib.rounding.stored_outputs import last_uses

CPU = torch.device("cpu")
ROWS, BATCH, WIDTH = 10, 4, 5
BATCHES = 3


class Inner(nn.Module):
    """Counts how often it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + torch.tanh(self.layer(x))


class Shaped(nn.Module):
    """A U-Net's shape: what goes down is added on the way up, so the first block's output is needed by the last."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.between = nn.Linear(WIDTH, WIDTH)
        self.down = nn.ModuleList(Inner() for _ in range(depth))
        self.up = nn.ModuleList(Inner() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block in self.up:
            x = block(self.between(x) + skips.pop())
        return x

    @property
    def runs(self) -> int:
        return sum(block.runs for block in (*self.down, *self.up) if isinstance(block, Inner))


def _forward(network: nn.Module, inputs: Inputs) -> object:
    return network(*inputs)


def _blocks(depth: int) -> list[Block]:
    names = [f"{side}.{number}" for side in ("down", "up") for number in range(depth)]
    return [Block(name, (f"{name}.layer",), (True,)) for name in names]


def test_the_last_use_of_an_output_follows_skip_connections() -> None:
    uses = last_uses(Shaped(3), _blocks(3), _forward, (torch.randn(2, WIDTH),))
    assert uses == {"down.0": 5, "down.1": 4, "down.2": 3, "up.0": 4, "up.1": 5, "up.2": 5}


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_every_block_is_computed_twice_however_deep_the_network(depth: int, tmp_path: Path) -> None:
    """In full precision for its own target; quantized once for the next block. One run more finds the last uses."""
    torch.manual_seed(0)
    reference, quantized, blocks, x = Shaped(depth), Shaped(depth), _blocks(depth), torch.randn(ROWS, WIDTH)
    with RowStore(tmp_path / "outputs", 10**6) as outputs:
        networks = BlockNetworks.of(reference, quantized, _forward, blocks, (x,), outputs)
        for number in range(len(blocks)):
            with RowStore(tmp_path / "rows", 10**6) as store:
                collect(blocks[: number + 1], networks, (x,), BATCH, CPU, store)
    assert reference.runs == len(blocks) * (BATCHES + 1)
    assert quantized.runs == (len(blocks) - 1) * BATCHES


def test_rows_are_those_of_whole_passes_and_outputs_are_freed(tmp_path: Path) -> None:
    """Also if the first blocks come from an earlier run, so that nothing is stored of them yet."""
    torch.manual_seed(0)
    reference, quantized, blocks, x = Shaped(3), Shaped(3), _blocks(3), torch.randn(ROWS, WIDTH)
    with RowStore(tmp_path / "outputs", 10**6) as outputs:
        networks = BlockNetworks.of(reference, quantized, _forward, blocks, (x,), outputs)
        for number in range(2, len(blocks)):
            with RowStore(tmp_path / "rows", 10**6) as store:
                rows = collect(blocks[: number + 1], networks, (x,), BATCH, CPU, store)
                (taken,), _ = rows.arguments.take(np.arange(ROWS), CPU)
                target = rows.target.copy()
            for begin in range(0, ROWS, BATCH):
                part, batch = slice(begin, begin + BATCH), (x[begin : begin + BATCH],)
                (whole,), _ = arguments_at(blocks[number], quantized, _forward, batch)
                assert torch.equal(taken[part], whole)
                assert torch.equal(torch.from_numpy(target[part]), output_of(blocks[number], reference, _forward, batch))
    assert outputs.in_memory == 5 * ROWS * WIDTH * 4  # in either network the two outputs that the last block reads, and its target


def test_a_wrong_last_use_is_refused(tmp_path: Path) -> None:
    reference, quantized, blocks, x = Shaped(2), Shaped(2), _blocks(2), torch.randn(ROWS, WIDTH)
    with RowStore(tmp_path / "outputs", 10**6) as outputs, RowStore(tmp_path / "rows", 10**6) as store:
        networks = BlockNetworks.of(reference, quantized, _forward, blocks, (x,), outputs)
        networks.approximate._last_uses = {block.name: 0 for block in blocks}
        collect(blocks[:2], networks, (x,), BATCH, CPU, store)
        with pytest.raises(RuntimeError, match="NaN"):
            collect(blocks[:4], networks, (x,), BATCH, CPU, store)
