from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from engines.networks.prompts import TOKEN_IDS, GraphEncoder
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.weight_only import WeightOnly, round_weights
from ptqd_export.graph.trace import trace_module


class Network(nn.Module):
    """Token embeddings, and linear layers that become MatMul and Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.plain, self.biased = nn.Linear(6, 5, bias=False), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.plain(self.words(ids))
        out: Tensor = self.biased(hidden.tanh().mean(dim=1))
        return out


def test_linear_layers_are_stored_in_8_bits_and_compute_with_the_rounded_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, ids = Network().eval(), torch.randint(7, (4, 3))
    original = network.biased.weight.detach().clone()
    round_weights(network)
    graph = trace_module(network, {TOKEN_IDS: ids[:2]})
    assert WeightOnly()(graph).modified
    save_graph(graph, tmp_path / "graph.onnx")
    found = GraphEncoder(tmp_path / "graph.onnx", ("out",))(ids.numpy())["out"]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(ids).numpy(), atol=1e-6)
    stored = {name: value.const_value.dtype for name, value in graph.graph.initializers.items() if value.const_value is not None}
    assert {name for name in stored if name.endswith(".int")} == {"plain.weight.T.int", "biased.weight.int"}
    assert not stored.keys() & {"plain.weight.T", "plain.weight", "biased.weight"}
    assert {stored[name] for name in stored if name.endswith(".int")} == {ir.DataType.INT8}
    assert stored["words.weight"] == ir.DataType.FLOAT
    step = original.abs().amax(dim=1, keepdim=True) / 127  # literal: symmetric, the largest weight of an output channel is 127
    torch.testing.assert_close(network.biased.weight.detach(), (original / step).round() * step)
