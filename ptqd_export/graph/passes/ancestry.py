"""Which values of a graph are computed from which."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.passes.embedding_cut import WEIGHTED, reads_batch_size


class Ancestry:
    """Which values are computed from which, among those computed from the state."""

    def __init__(self, graph: ir.Graph) -> None:
        self._place = {node: place for place, node in enumerate(graph)}
        self._from_state = {value for value in graph.inputs if value.name == STATE}
        for node in graph:
            if not reads_batch_size(node) and not self._from_state.isdisjoint(node.inputs):
                self._from_state.update(node.outputs)

    def depends(self, value: ir.Value, on: ir.Value) -> bool:
        """Whether a value is computed from another one that is computed from the state."""
        if value is on or not {value, on} <= self._from_state:
            return False
        source = on.producer()
        earliest = -1 if source is None else self._place[source]
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop().producer()
            near = node is not None and self._place[node] > earliest
            new = {given for given in node.inputs if given in self._from_state} - seen if node is not None and near else set()
            if on in new:
                return True
            seen |= new
            waiting += new
        return False


def saves(graph: ir.Graph, given: ir.Value) -> bool:
    """Whether the outputs need fewer weighted operators, but still the state, if a value is given."""
    nodes, inputs, _ = needed(graph, {given})
    return any(node.op_type in WEIGHTED and node not in nodes for node in graph) and STATE in inputs


def needed(graph: ir.Graph, given: Collection[ir.Value]) -> tuple[set[ir.Node], set[str], set[ir.Value]]:
    """Return the nodes that the outputs need if some values are given, the inputs, and which of these values they need."""
    waiting, nodes, inputs, used = list(graph.outputs), set[ir.Node](), set[str](), set[ir.Value]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in given:
            used.add(value)
        elif node is None:
            inputs.add(str(value.name))
        elif node not in nodes:
            nodes.add(node)
            waiting += [] if reads_batch_size(node) else [one for one in node.inputs if one is not None]
    return nodes, inputs, used
