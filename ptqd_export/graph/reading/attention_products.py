"""Finds the products of attention in a traced graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from engines.networks.engine_denoiser import STATE

_MASKING = ("Add", "Where")
"""Operators that put a mask on the scores."""


@dataclass(frozen=True)
class AttentionProducts:
    """The two products of one attention: Softmax(scores) times values.

    Attributes:
        scores: MatMul of the query and the transposed key, both with the root of the scale.
        weighted: MatMul of the softmax and the value.
        beside_the_state: whether the key does not depend on the state: attention to a prompt.
    """

    scores: ir.Node
    weighted: ir.Node
    beside_the_state: bool


def find_attention(graph: ir.Graph) -> list[AttentionProducts]:
    """Return every attention that is written as products, in the order of the graph."""
    state = _of_the_state(graph)
    found = []
    for node in graph:
        scores = _scores(node.inputs[0]) if node.op_type == "Softmax" else None
        weighted = _weighted(node) if scores is not None else None
        if scores is not None and weighted is not None:
            found.append(AttentionProducts(scores, weighted, scores.inputs[1] not in state))
    return found


def _scores(value: ir.Value | None) -> ir.Node | None:
    """Return the product of two computed values behind which at most a mask was added."""
    node = None if value is None else value.producer()
    if node is None or node.op_type == "MatMul":
        return node if node is not None and all(_is_computed(one) for one in node.inputs) else None
    masked = [_scores(one) for one in node.inputs] if node.op_type in _MASKING else []
    return next((one for one in masked if one is not None), None)


def _weighted(softmax: ir.Node) -> ir.Node | None:
    """Return the product of a softmax and computed values. With a mask of booleans, rows without any key are set to 0 in between."""
    (weights,) = softmax.outputs
    users = {use.node for use in weights.uses()}
    cleared = [node for node in users if node.op_type == "Where" and node.inputs[2] is weights]
    if cleared and all(node in cleared or node.op_type == "IsNaN" for node in users):
        (weights,) = cleared[0].outputs
        users = {use.node for use in weights.uses()}
    products = [node for node in users if node.op_type == "MatMul" and node.inputs[0] is weights and _is_computed(node.inputs[1])]
    return products[0] if len(products) == len(users) == 1 else None


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and not value.is_initializer()


def _of_the_state(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that depend on the state's values, not only on its shape."""
    found = {value for value in graph.inputs if value.name == STATE}
    for node in graph:
        if node.op_type != "Shape" and not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found
