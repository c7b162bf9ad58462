from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from engines.networks.prompts import TOKEN_IDS, GraphEncoder
from ptqd_export.graph.graph_files import save_graph, save_with_data
from ptqd_export.graph.passes.weight_only import TABLE_ROWS, WeightOnly, round_weights
from ptqd_export.graph.trace import trace_module


class Network(nn.Module):
    """Embeddings of tokens and of a few kinds of them, and linear layers that become MatMul and Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(TABLE_ROWS, 6), nn.Embedding(3, 6)
        self.plain, self.biased = nn.Linear(6, 5, bias=False), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.plain(self.words(ids) + self.words(ids.flip(1)) + self.kinds(ids % 3))
        out: Tensor = self.biased(hidden.tanh().mean(dim=1))
        return out


def test_weights_and_large_tables_are_stored_in_8_bits_and_compute_with_the_rounded_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptqd_export.graph.passes.weight_only.ROWS_AT_ONCE", 100)
    torch.manual_seed(0)
    network, ids = Network().eval(), torch.randint(TABLE_ROWS, (4, 3))
    weights = (network.biased.weight, network.words.weight)
    originals = [weight.detach().clone() for weight in weights]
    round_weights(network)
    graph = trace_module(network, {TOKEN_IDS: ids[:2]})
    assert WeightOnly()(graph).modified
    save_graph(graph, tmp_path / "graph.onnx")
    found = GraphEncoder(tmp_path / "graph.onnx", ("out",))(ids.numpy())["out"]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(ids).numpy(), atol=1e-6)
    stored = {name: value.const_value.dtype for name, value in graph.graph.initializers.items() if value.const_value is not None}
    assert {name for name in stored if name.endswith(".int")} == {"plain.weight.T.int", "biased.weight.int", "words.weight.int"}
    assert not stored.keys() & {"plain.weight.T", "plain.weight", "biased.weight", "words.weight"}
    assert {stored[name] for name in stored if name.endswith(".int")} == {ir.DataType.INT8}
    assert stored["kinds.weight"] == ir.DataType.FLOAT
    for weight, original in zip(weights, originals, strict=True):
        step = original.abs().amax(dim=1, keepdim=True) / 127  # literal: symmetric, the largest weight of a channel or row is 127
        torch.testing.assert_close(weight.detach(), (original / step).round() * step)


ANON = """
import sys, numpy as np
from pathlib import Path
from engines.networks.prompts import GraphEncoder

def held():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("RssAnon"))

ids = np.zeros((1, 3), np.int64)
GraphEncoder(Path(sys.argv[1]), ("out",))(ids)  # what the runtime itself needs
begin, encoder = held(), GraphEncoder(Path(sys.argv[2]), ("out",))
encoder(ids)
print(held() - begin)
"""
"""Prints the KiB of memory of its own that a process takes for a graph."""


class Table(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, 512)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids).mean(dim=1)  # type: ignore[no-any-return]  # PyTorch's own


def test_a_table_in_a_data_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    rows, kib = 65536, 65536 * 512 // 1024
    small, large = (trace_module(Table(one).eval(), {TOKEN_IDS: torch.zeros(2, 3, dtype=torch.long)}) for one in (TABLE_ROWS, rows))
    for graph in (small, large):
        WeightOnly()(graph)
    save_graph(small, tmp_path / "small.onnx")
    save_graph(large, tmp_path / "whole.onnx")
    save_with_data(large, tmp_path / "mapped.onnx")

    def taken(name: str) -> int:
        command = [sys.executable, "-c", ANON, str(tmp_path / "small.onnx"), str(tmp_path / name)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert taken("mapped.onnx") < kib / 4 < kib <= taken("whole.onnx")
