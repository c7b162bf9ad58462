"""What is stored of a block: arguments in the quantized network, outputs in full precision, and nothing run behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calib.rounding.block_rows import BlockNetworks, BlockRows, collect
from calib.rounding.blocks import Block
from calib.rounding.module_calls import Inputs
from calib.rounding.row_store import RowStore

CPU = torch.device("cpu")
BLOCK = Block("block", ("block.layer",), (True, True, False))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, labels: Tensor, scale: float) -> Tensor:
        out: Tensor = scale * self.layer(x) + labels[:, None]
        return out


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.block = Inner()
        self.behind_runs = 0

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.block(self.before(x), labels, scale=0.5)
        self.behind_runs += 1
        return out


def _forward(network: nn.Module, inputs: Inputs) -> object:
    return network(*inputs)


def _networks() -> tuple[Network, Network]:
    torch.manual_seed(0)
    reference, quantized = Network(), Network()
    return reference, quantized


def _inputs(samples: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(1)), torch.arange(samples)


def _collect(reference: Network, quantized: Network, inputs: Inputs, store: RowStore) -> BlockRows:
    networks = BlockNetworks.of(reference, quantized, _forward, [BLOCK], inputs, store)
    reference.behind_runs = 0
    return collect([BLOCK], networks, inputs, 3, CPU, store)


def test_arguments_are_the_quantized_networks_and_targets_the_references(tmp_path: Path) -> None:
    reference, quantized = _networks()
    x, labels = _inputs(7)
    with RowStore(tmp_path / "rows", 10**6) as store:
        rows = _collect(reference, quantized, (x, labels), store)
        args, kwargs = rows.arguments.take(np.array([5, 0]), CPU)
    torch.testing.assert_close(args[0], quantized.before(x[[5, 0]]).detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(args[1], torch.tensor([5, 0]))
    assert kwargs == {"scale": 0.5}
    torch.testing.assert_close(torch.from_numpy(rows.target), reference(x, labels).detach(), rtol=1e-6, atol=1e-6)


def test_nothing_behind_the_block_is_run(tmp_path: Path) -> None:
    reference, quantized = _networks()
    with RowStore(tmp_path / "rows", 10**6) as store:
        _collect(reference, quantized, _inputs(4), store)
    assert (reference.behind_runs, quantized.behind_runs) == (0, 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for network in _networks() for module in network.modules())


def test_files_give_the_rows_that_memory_gives(tmp_path: Path) -> None:
    found: list[list[Any]] = []
    for memory in (0, 10**6):
        with RowStore(tmp_path / "rows", memory) as store:
            rows = _collect(*_networks(), _inputs(7), store)
            assert (store.in_files > 0, store.in_memory > 0) == (memory == 0, memory > 0)
            args, _ = rows.arguments.take(np.array([6, 2, 2]), CPU)
            found.append([*args, torch.from_numpy(rows.target.copy())])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
