"""Attention as one operator, traced from PyTorch's own function and held against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from ptqd_export.graph.passes import attention
from ptqd_export.graph.passes.attention import FuseAttention
from ptqd_export.graph.trace import trace_module

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    Run = Callable[..., Array]

HEADS, SIZE = 3, 4


class Attending(nn.Module):
    """Queries attend to other tokens, under a mask where one is given."""

    def __init__(self, mask: Tensor | None = None, scale: float | None = None) -> None:
        super().__init__()
        self.mask, self.scale = mask, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.view(x.shape[0], -1, HEADS, SIZE).transpose(1, 2) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=self.scale)
        return out.transpose(1, 2).reshape(query.shape[0], -1, HEADS * SIZE)


def tokens(batch: int) -> dict[str, Tensor]:
    """5 queries and 7 tokens to attend to."""
    generator = torch.Generator().manual_seed(batch)
    counts = {"query": 5, "key": 7, "value": 7}
    return {name: 2 * torch.randn(batch, count, HEADS * SIZE, generator=generator) for name, count in counts.items()}


@pytest.fixture(scope="module", params=[None, 0.7], ids=["usual scale", "own scale"])
def attending(request: pytest.FixtureRequest) -> tuple[Attending, ir.Model]:
    module = Attending(scale=request.param)
    return module, trace_module(module, tokens(2))


@pytest.mark.parametrize("batch", [1, 3])
def test_operator_computes_what_torch_computes(attending: tuple[Attending, ir.Model], run_graph: Run, batch: int) -> None:
    module, traced = attending
    model = traced.clone()
    assert FuseAttention()(model).modified
    feeds = tokens(batch)
    out = run_graph(model, {name: value.numpy() for name, value in feeds.items()})
    np.testing.assert_allclose(out, module(**feeds).numpy(), rtol=0, atol=2e-6)


def test_nothing_is_left_of_the_products_and_the_graph_is_standard(attending: tuple[Attending, ir.Model]) -> None:
    model = attending[1].clone()
    ir.passes.Sequential(FuseAttention(), common.RemoveUnusedNodesPass())(model)
    assert [node.op_type for node in model.graph] == ["Attention"]
    assert model.opset_imports == {"": 23}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_many_scores_are_computed_in_parts_of_the_queries(
    attending: tuple[Attending, ir.Model], run_graph: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 queries make two parts, of 3 and 2: a prime number of queries is not cut one by one."""
    monkeypatch.setattr(attention, "MOST_SCORES", HEADS * 4 * 7)
    module, traced = attending
    model = traced.clone()
    ir.passes.Sequential(FuseAttention(), common.RemoveUnusedNodesPass())(model)
    assert [node.op_type for node in model.graph] == ["Split", *["Attention"] * 2, "Concat"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    feeds = tokens(3)
    out = run_graph(model, {name: value.numpy() for name, value in feeds.items()})
    np.testing.assert_allclose(out, module(**feeds).numpy(), rtol=0, atol=2e-6)


def test_masked_attention_is_left_as_it_is() -> None:
    module = Attending(mask=torch.linspace(-1, 1, 35).reshape(5, 7))
    model = trace_module(module, tokens(2))
    assert not FuseAttention()(model).modified
    assert model.opset_imports[""] == 21


def test_softmax_that_is_no_attention_is_left_alone(parse_graph: Callable[[str], ir.Model]) -> None:
    model = parse_graph("g (float[N,6] x) => (float[N,6] out) { y = Softmax <axis = -1> (x) out = Relu (y) }")
    assert not FuseAttention()(model).modified
