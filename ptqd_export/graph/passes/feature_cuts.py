"""Finds the places where a network can reuse deep features of an earlier step, and cuts the network there.

Neighbouring steps compute nearly the same deep features (DeepCache, arXiv 2312.00858; Delta-DiT, arXiv 2406.01125). A cut gives two graphs:
`full` returns the features too, and `reuse` takes them instead of computing them. Cuts are found by the shape of the graph:

1. A skip connection of a U-Net is a concatenation of channels, one of whose parts is computed from the other. The part that is computed
   last comes up from below the skip: it is kept.
2. A block of a transformer adds something to its input that is computed from this input. What a range of blocks adds is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from engines.backends.base import KEPT
from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.passes.embedding_cut import FLOATS, WEIGHTED, prune, reads_batch_size, row_of

RESIDUAL = re.compile(r"residual_(\d+)_(\d+)")


@dataclass(frozen=True)
class FoundCuts:
    """The cuts of a network. Their names are the same at every precision.

    Attributes:
        skips: kept features by name: `skip_N`, N counted from the output.
        residuals: sums of a block's input and what it adds, each with the input, in the order of the graph; used if there are no skips.
    """

    skips: dict[str, ir.Value]
    residuals: tuple[tuple[ir.Value, ir.Value], ...]

    @property
    def described(self) -> str:
        """Names of the cuts, for messages."""
        if self.skips:
            return ", ".join(self.skips)
        if len(self.residuals) < 2:
            return "none: the network has neither skip connections nor residual blocks"
        return f"residual_A_B with 0 <= A <= B < {len(self.residuals)}"

    @property
    def proposed(self) -> tuple[str, ...]:
        """The cuts to choose among: every skip connection, or the ranges around the middle of the blocks."""
        count = len(self.residuals)
        return (*self.skips, *(f"residual_{first}_{count - 1 - first}" for first in range(count // 2)))

    def __contains__(self, name: str) -> bool:
        return name in self.skips or self._range(name) is not None

    def _range(self, name: str) -> tuple[int, int] | None:
        found = RESIDUAL.fullmatch(name)
        if self.skips or found is None:
            return None
        first, last = int(found[1]), int(found[2])
        return (first, last) if first <= last < len(self.residuals) else None

    def at(self, name: str) -> tuple[ir.Value, ir.Value | None]:
        """Return the value that is replaced at a cut and, where what blocks add to it is kept, the input of these blocks."""
        if name in self.skips:
            return self.skips[name], None
        ends = self._range(name)
        assert ends is not None, name
        return self.residuals[ends[1]][0], self.residuals[ends[0]][1]


@dataclass(frozen=True)
class CutGraphs:
    """The two graphs of a cut, which give the same outputs for the same features.

    Attributes:
        full: the network, whose second output `kept` float32 [batch, ...] is the features.
        reuse: the network with `kept` as a further input, without what computes it.
    """

    full: ir.Model
    reuse: ir.Model


def find_cuts(model: ir.Model) -> FoundCuts:
    """Return the cuts of a network."""
    ancestry = _Ancestry(model.graph)
    skips = [deep for deep in _skips(model.graph, ancestry) if _saves(model.graph, deep)]
    named = {f"skip_{number}": deep for number, deep in enumerate(reversed(skips))}
    return FoundCuts(named, () if named else tuple(_residuals(model.graph, ancestry)))


def cut_features(model: ir.Model, name: str) -> CutGraphs:
    """Return the graphs of a cut of a network, which `find_cuts` found."""
    return CutGraphs(_cut(model.clone(), name, _keep), _cut(model.clone(), name, _reuse))


def _cut(model: ir.Model, name: str, change: Callable[[ir.Model, ir.Value, ir.Value | None], None]) -> ir.Model:
    change(model, *find_cuts(model).at(name))
    return model


def _keep(model: ir.Model, replaced: ir.Value, before: ir.Value | None) -> None:
    """Add the output `kept`. What blocks add is added again, so that both graphs round alike."""
    graph, tape = model.graph, ir.tape.Tape()
    features = replaced
    if before is not None:
        users = list(replaced.uses())
        features = _like(tape.op("Sub", [replaced, before]), replaced)
        total = _like(tape.op("Add", [before, features]), replaced)
        for node, index in users:
            node.replace_input_with(index, total)
        graph.outputs[:] = [total if value is replaced else value for value in graph.outputs]
    is_float = features.dtype == ir.DataType.FLOAT
    kept = tape.op("Identity", [features]) if is_float else tape.op("Cast", [features], attributes={"to": ir.DataType.FLOAT})
    kept.name, kept.type, kept.shape = KEPT, ir.TensorType(ir.DataType.FLOAT), replaced.shape
    producer = replaced.producer()
    assert producer is not None
    graph.insert_after(producer, tape.nodes)
    graph.outputs.append(kept)


def _reuse(model: ir.Model, replaced: ir.Value, before: ir.Value | None) -> None:
    """Take the input `kept` in place of what computes it."""
    graph, tape = model.graph, ir.tape.Tape()
    kept = ir.Value(name=KEPT, type=ir.TensorType(ir.DataType.FLOAT), shape=replaced.shape)
    inputs = {str(value.name) for value in graph.inputs}
    users = list(replaced.uses())
    given = kept if replaced.dtype == ir.DataType.FLOAT else _like(tape.op("Cast", [kept], attributes={"to": replaced.dtype}), replaced)
    if before is not None:
        given = _like(tape.op("Add", [before, given]), replaced)
    for node, index in users:
        node.replace_input_with(index, given)
    graph.outputs[:] = [given if value is replaced else value for value in graph.outputs]
    graph.inputs.append(kept)
    producer = replaced.producer()
    assert producer is not None
    graph.insert_after(producer, tape.nodes)
    prune(model, {*inputs, KEPT})


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    value.type, value.shape = other.type, other.shape
    return value


def _skips(graph: ir.Graph, ancestry: _Ancestry) -> Iterator[ir.Value]:
    """Yield the features that come up from below each skip connection, in the order of the graph."""
    for node in graph:
        parts = [value for value in node.inputs if value is not None]
        if node.op_type != "Concat" or len(parts) != 2 or not _joins_channels(node):
            continue
        for skip, deep in (parts, parts[::-1]):
            if ancestry.depends(deep, skip):
                features = _before_quantizers(deep)
                if row_of(features) is not None and features.dtype in FLOATS:
                    yield features


def _joins_channels(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    if shape is None or len(shape) not in (3, 4):
        return False
    return node.attributes.get_int("axis", 0) % len(shape) == (1 if len(shape) == 4 else 2)


def _before_quantizers(value: ir.Value) -> ir.Value:
    """Return what a dequantized value was quantized from, if something else reads that too; otherwise the value itself."""
    dequantize = value.producer()
    quantize = None if dequantize is None or dequantize.op_type != "DequantizeLinear" else _producer(dequantize.inputs[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.inputs[0] is None:
        return value
    raw = quantize.inputs[0]
    return raw if len(raw.uses()) > 1 else value


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _residuals(graph: ir.Graph, ancestry: _Ancestry) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the sums of the blocks, each with the block's input, where leaving out what the block adds saves something."""
    for node in graph:
        parts = [value for value in node.inputs if value is not None]
        out = node.outputs[0]
        if node.op_type != "Add" or len(parts) != 2 or row_of(out) is None or len(out.shape or ()) < 3 or out.dtype not in FLOATS:
            continue
        for before, added in (parts, parts[::-1]):
            if row_of(before) == row_of(out) and ancestry.depends(added, before) and _saves(graph, added):
                yield out, before


class _Ancestry:
    """Which values are computed from which, among those computed from the state."""

    def __init__(self, graph: ir.Graph) -> None:
        self._from_state = {value for value in graph.inputs if value.name == STATE}
        for node in graph:
            if not reads_batch_size(node) and not self._from_state.isdisjoint(node.inputs):
                self._from_state.update(node.outputs)

    def depends(self, value: ir.Value, on: ir.Value) -> bool:
        """Whether a value is computed from another one that is computed from the state."""
        if value is on or not {value, on} <= self._from_state:
            return False
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop().producer()
            new = set() if node is None else {given for given in node.inputs if given in self._from_state} - seen
            if on in new:
                return True
            seen |= new
            waiting += new
        return False


def _saves(graph: ir.Graph, given: ir.Value) -> bool:
    """Whether the outputs need fewer weighted operators, but still the state, if a value is given."""
    needed, inputs = _needed(graph, given)
    return any(node.op_type in WEIGHTED and node not in needed for node in graph) and STATE in inputs


def _needed(graph: ir.Graph, given: ir.Value) -> tuple[set[ir.Node], set[str]]:
    """Return the nodes that the outputs need, and the inputs."""
    waiting, nodes, inputs = list(graph.outputs), set[ir.Node](), set[str]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value is given or node in nodes:
            continue
        if node is None:
            inputs.add(str(value.name))
        else:
            nodes.add(node)
            waiting += [] if reads_batch_size(node) else [used for used in node.inputs if used is not None]
    return nodes, inputs
