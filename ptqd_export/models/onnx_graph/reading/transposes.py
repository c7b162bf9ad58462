"""Drop pairs of transpositions that undo each other, so that layers and norms are beside each other again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode
from ptqd_export.models.onnx_graph.reading.folded import reaching


def without_undone_transposes(nodes: Sequence[OnnxNode], output: str) -> tuple[OnnxNode, ...]:
    """Return the nodes without every Transpose that undoes the one before it: what reads the second reads the first one's input."""
    made, same, kept = dict[str, OnnxNode](), dict[str, str](), list[OnnxNode]()
    for node in nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        before = made.get(node.inputs[0]) if node.op == "Transpose" else None
        if before is not None and node.outputs[0] != output and _undoes(node, before):
            same[node.outputs[0]] = before.inputs[0]
            continue
        if node.op == "Transpose":
            made[node.outputs[0]] = node
        kept.append(node)
    return reaching(kept, [output])


def _undoes(node: OnnxNode, before: OnnxNode) -> bool:
    order, first = node.attributes.get("perm"), before.attributes.get("perm")
    if order is None or first is None:
        return order is first
    return [first[axis] for axis in order] == sorted(first)
