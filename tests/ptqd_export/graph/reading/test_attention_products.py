"""The products of attention are found by their structure."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from ptqd_export.graph.reading.attention_products import find_attention

ParseGraph = Callable[[str], ir.Model]

TWICE = """
    g (float[N,2,5,4] sample, float[N,2,7,4] prompt) => (float[N,2,5,4] out)
    {
        k = Transpose <perm = [0, 1, 3, 2]> (sample) s = MatMul (sample, k) p = Softmax <axis = -1> (s) o = MatMul (p, sample)
        pk = Transpose <perm = [0, 1, 3, 2]> (prompt) ps = MatMul (o, pk) m = Add (ps, ps) pp = Softmax <axis = -1> (m)
        out = MatMul (pp, prompt)
    }"""


def test_attention_is_found_in_order_and_that_to_a_prompt_is_beside_the_state(parse_graph: ParseGraph) -> None:
    graph = parse_graph(TWICE).graph
    found = find_attention(graph)
    assert [(one.scores.outputs[0].name, one.weighted.outputs[0].name, one.beside_the_state) for one in found] == [
        ("s", "o", False),
        ("ps", "out", True),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "y = Softmax <axis = -1> (x) out = Relu (y)",
        "s = MatMul (x, weight) y = Softmax <axis = -1> (s) out = MatMul (y, x)",
        "s = MatMul (x, x) y = Softmax <axis = -1> (s) out = MatMul (y, weight)",
        "s = MatMul (x, x) y = Softmax <axis = -1> (s) z = Relu (y) o = MatMul (y, x) out = Add (o, z)",
    ],
)
def test_other_softmax_is_left_alone(parse_graph: ParseGraph, body: str) -> None:
    model = parse_graph(f"g (float[6,6] x, float[6,6] weight) => (float[6,6] out) {{ {body} }}")
    (weight,) = (value for value in model.graph.inputs if value.name == "weight")
    model.graph.inputs.remove(weight)
    weight.const_value = ir.tensor([[1.0] * 6] * 6)
    model.graph.register_initializer(weight)
    assert find_attention(model.graph) == []
