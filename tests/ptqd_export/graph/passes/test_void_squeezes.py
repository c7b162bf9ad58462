"""Squeezes of axes that are longer than 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ptqd_export.graph.passes.void_squeezes import VoidSqueezes


def test_only_squeezes_of_longer_axes_are_removed(parse_graph: Callable[[str], ir.Model], run_graph: Callable[..., Any]) -> None:
    graph = parse_graph("""
        agraph (float[N, 3, 1] sample) => (float[N, 3] out) {
            one = Constant <value_ints = [1]> ()
            two = Constant <value_ints = [2]> ()
            same = Squeeze(sample, one)
            out = Squeeze(same, two)
        }
    """)
    assert VoidSqueezes()(graph).modified
    assert [node.op_type for node in graph.graph].count("Squeeze") == 1
    x = np.random.default_rng(0).standard_normal((2, 3, 1), dtype=np.float32)
    np.testing.assert_array_equal(run_graph(graph, {"sample": x}), x[:, :, 0])
    assert not VoidSqueezes()(graph).modified
