"""Queries that may see no key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ptqd_export.graph.passes.masked_rows import MaskedRows
from ptqd_export.graph.trace import trace_module

TOKENS, MASKED = 6, 2


class _Attention(torch.nn.Module):
    def forward(self, sample: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Return what tokens see of themselves and those before, of which `keep` int64 [batch, tokens] says which may be seen."""
        seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None] & keep.bool()[:, None, None]
        x = sample[:, None]
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=seen)[:, 0]


def test_padding_in_front_sees_nothing_as_in_torch(run_graph: Callable[..., Any]) -> None:
    sample = torch.from_numpy(np.random.default_rng(0).standard_normal((2, TOKENS, 4), dtype=np.float32))
    keep = torch.tensor([[0] * MASKED + [1] * (TOKENS - MASKED), [1] * TOKENS])
    expected, inputs = _Attention()(sample, keep).numpy(), {"sample": sample.numpy(), "keep": keep.numpy()}
    graph = trace_module(_Attention(), {"sample": sample, "keep": keep})
    assert np.abs(run_graph(graph, inputs)[0, :MASKED]).max() > 0.1, "the exporter mends this itself: the pass has no use any more"
    assert MaskedRows()(graph).modified
    found = run_graph(graph, inputs)
    assert not found[0, :MASKED].any()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not MaskedRows()(graph).modified


def test_other_choices_stay(parse_graph: Callable[[str], ir.Model]) -> None:
    graph = parse_graph("""
        agraph (float[N, 3] sample, bool[N, 3] keep) => (float[N, 3] out) {
            zero = Constant <value_float = 0.0> ()
            lowest = Constant <value_float = -3.4028235e38> ()
            mask = Where(keep, zero, lowest)
            masked = Add(sample, mask)
            out = Softmax(masked)
        }
    """)
    assert not MaskedRows()(graph).modified, "nothing clears the NaN that it would make"
