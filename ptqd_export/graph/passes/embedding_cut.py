"""Splits a network into the part that depends only on the timestep and conditions, and the part that is computed for every state."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.reading.constants import constant

WEIGHTED = frozenset({"Gemm", "MatMul", "Conv"})
"""Operators whose results are worth storing. Copying the results of other operators costs as much as computing them."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types whose values float32 represents exactly."""

BATCH = "batch"
"""Name of the first axis of all inputs, and of every value with one row per row of the inputs."""

EMBEDDING = "embedding"


@dataclass(frozen=True)
class CutNetwork:
    """A network in pieces, which together compute the same as the whole network, node by node.

    Attributes:
        body: the network, with inputs `embedding_0`, `embedding_1`, ... float32 [batch, values] in place of what was cut off.
        embeddings: for each of these inputs, the graph that computes it as its only output. No two of the graphs depend on the same inputs
            of the network.
    """

    body: ir.Model
    embeddings: Mapping[str, ir.Model]


def has_embeddings(model: ir.Model) -> bool:
    """Whether `cut_embeddings` can cut anything off the network."""
    return bool(_Dependencies(model.graph).frontier())


def cut_embeddings(model: ir.Model) -> CutNetwork | None:
    """Return the network in pieces, or None if every weighted operator depends on the state.

    The cut is at the last values that do not depend on the state. Values that depend on the same inputs of the network are concatenated
    into one tensor [batch, values].
    """
    model = model.clone()
    _free_names(model.graph)
    found = _Dependencies(model.graph).frontier()
    if not found:
        return None
    embeddings = {name: _embedding(model.clone(), name, values) for name, values in found.items()}
    return CutNetwork(_body(model, found), embeddings)


def _free_names(graph: ir.Graph) -> None:
    """Rename values that are called like the inputs of a body: torch calls the rows of a lookup so."""
    for node in graph:
        for value in node.outputs:
            if str(value.name).startswith(f"{EMBEDDING}_"):
                value.name = f"network_{value.name}"


class _Dependencies:
    """The inputs that each value of a graph depends on. The batch size does not count, because it is the same in every input."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._found = {value: frozenset({str(value.name)}) for value in graph.inputs}
        for node in graph:
            used = [] if reads_batch_size(node) else [self._found[value] for value in node.inputs if value in self._found]
            self._found |= dict.fromkeys(node.outputs, frozenset[str]().union(*used))

    def of(self, value: ir.Value) -> frozenset[str]:
        return self._found.get(value, frozenset())

    def frontier(self) -> dict[str, list[str]]:
        """Return the names of the values in each embedding, by the embedding's name."""
        last = [value for node in self._graph if STATE in self.of(node.outputs[0]) for value in self._hoistable(node.inputs)]
        groups: dict[frozenset[str], list[str]] = {}
        for cut in dict.fromkeys(smallest for value in last for smallest in self._smallest(value)):
            if row_of(cut) is not None and cut.dtype in FLOATS and self._is_weighted(cut):
                groups.setdefault(self.of(cut), []).append(str(cut.name))
        return {f"{EMBEDDING}_{index}": groups[inputs] for index, inputs in enumerate(sorted(groups, key=sorted))}

    def _hoistable(self, values: Iterable[ir.Value | None]) -> list[ir.Value]:
        """Return the values that depend on inputs but not on the state."""
        return [value for value in values if value is not None and self.of(value) and STATE not in self.of(value)]

    def _smallest(self, value: ir.Value) -> list[ir.Value]:
        """Return the value, or the smaller values that it is computed from: an Expand stays in the body, and so do nodes whose output
        has an unknown shape.
        """
        node = value.producer()
        if node is None or node.op_type in WEIGHTED:
            return [value]
        sources = self._hoistable(node.inputs)
        if row_of(value) is not None and sum(map(_size, sources)) >= _size(value):
            return [value]
        return [smallest for source in sources for smallest in self._smallest(source)]

    def _is_weighted(self, value: ir.Value) -> bool:
        """Whether the value depends on a weighted operator."""
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node.op_type in WEIGHTED:
                return True
            new = set(self._hoistable(() if node is None else node.inputs)) - seen
            seen |= new
            waiting += new
        return False


def reads_batch_size(node: ir.Node) -> bool:
    return node.op_type == "Shape" and (node.attributes.get_int("start", 0), node.attributes.get_int("end", 0)) == (0, 1)


def row_of(value: ir.Value) -> tuple[int, ...] | None:
    """Shape of a value without the batch; None if the graph does not state it, or if the first axis is not the batch."""
    if value.shape is None or not len(value.shape) or str(value.shape[0]) != BATCH:
        return None
    sides = tuple(side for side in value.shape[1:] if isinstance(side, int))
    return sides if len(sides) == len(value.shape) - 1 else None


def _known_row(value: ir.Value) -> tuple[int, ...]:
    row = row_of(value)
    assert row is not None, f"a frontier value: {value}"
    return row


def _size(value: ir.Value) -> float:
    row = row_of(value)
    return math.inf if row is None else math.prod(row)


def _embedding(model: ir.Model, name: str, values: Sequence[str]) -> ir.Model:
    """Reduce the graph to one that computes the values, concatenated."""
    graph = model.graph
    wanted = _named(graph, values)
    inputs = _Dependencies(graph).of(wanted[0])
    tape = ir.tape.Tape()
    out = tape.op("Concat", [_flattened(tape, value) for value in wanted], attributes={"axis": 1})
    out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), _side_by_side(wanted)
    graph.extend(tape.nodes)
    graph.outputs[:] = [out]
    prune(model, inputs)
    return model


def _body(model: ir.Model, found: Mapping[str, Sequence[str]]) -> ir.Model:
    """Changes the graph to take the values as inputs instead of computing them."""
    graph, tape = model.graph, ir.tape.Tape()
    for name, values in found.items():
        wanted = _named(graph, values)
        given = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=_side_by_side(wanted))
        graph.inputs.append(given)
        sizes = constant(graph, f"{name}_sizes", np.array([math.prod(_known_row(value)) for value in wanted], dtype=np.int64))
        parts = tape.op_multi_out("Split", [given, sizes], attributes={"axis": 1}, num_outputs=len(wanted))
        for value, part in zip(wanted, parts, strict=True):
            value.replace_all_uses_with(_unflattened(tape, graph, part, value))
    graph.insert_before(graph[0], tape.nodes)
    prune(model, {STATE, *found})
    return model


def _flattened(tape: ir.tape.Tape, value: ir.Value) -> ir.Value:
    """Convert a value to float32 [batch, values]."""
    if value.dtype != ir.DataType.FLOAT:
        value = tape.op("Cast", [value], attributes={"to": ir.DataType.FLOAT})
    return tape.op("Flatten", [value], attributes={"axis": 1})


def _unflattened(tape: ir.tape.Tape, graph: ir.Graph, flat: ir.Value, value: ir.Value) -> ir.Value:
    """Restore the type and shape of `value`."""
    row = _known_row(value)
    if value.dtype != ir.DataType.FLOAT:
        flat = tape.op("Cast", [flat], attributes={"to": value.dtype})
    if len(row) == 1:
        return flat
    return tape.op("Reshape", [flat, constant(graph, f"rows_of_{'_'.join(map(str, row))}", np.array([0, *row], dtype=np.int64))])


def _side_by_side(values: Sequence[ir.Value]) -> ir.Shape:
    return ir.Shape([BATCH, sum(math.prod(_known_row(value)) for value in values)])


def _named(graph: ir.Graph, names: Iterable[str]) -> list[ir.Value]:
    made = {value.name: value for node in graph for value in node.outputs}
    return [made[name] for name in names]


def prune(model: ir.Model, inputs: Collection[str]) -> None:
    """Remove nodes that the outputs do not need, and unused inputs of the network that are not in `inputs`."""
    graph = model.graph
    first = next(value for value in graph.inputs if value.name in inputs)
    for node in graph:
        if reads_batch_size(node):
            node.replace_input_with(0, first)
    common.RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if value.name not in inputs and not value.uses()]:
        graph.inputs.remove(value)
