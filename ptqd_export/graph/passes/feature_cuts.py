"""Finds the places where a network can reuse deep features of an earlier step, and cuts the network there.

Neighbouring steps compute nearly the same deep features (DeepCache, arXiv 2312.00858; Delta-DiT, arXiv 2406.01125). A cut gives two graphs:
`full` returns the features too, and `reuse` takes them instead of computing them. Cuts are found by the shape of the graph:

1. A skip connection of a U-Net is a concatenation of channels, one of whose parts is computed from the other. The part that is computed
   last comes up from below the skip: it is kept.
2. A block of a transformer adds something to its input that is computed from this input. What a range of blocks adds is kept, for every
   stream of tokens that is needed behind the range; see `ptqd_export.graph.passes.token_streams`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from engines.backends.base import KEPT
from ptqd_export.graph.passes.ancestry import Ancestry, saves
from ptqd_export.graph.passes.embedding_cut import FLOATS, prune, row_of
from ptqd_export.graph.passes.token_streams import Kept, TokenStreams

RESIDUAL = re.compile(r"residual_(\d+)_(\d+)")


@dataclass(frozen=True)
class FoundCuts:
    """The cuts of a network. Their names are the same at every precision.

    Attributes:
        skips: kept features by name: `skip_N`, N counted from the output.
        streams: residual blocks of a network without skips.
    """

    skips: dict[str, ir.Value]
    streams: TokenStreams

    @property
    def described(self) -> str:
        """Names of the cuts, for messages."""
        if self.skips:
            return ", ".join(self.skips)
        if len(self.streams.sums) < 2:
            return "none: the network has neither skip connections nor residual blocks"
        return f"residual_A_B with 0 <= A <= B < {len(self.streams.sums)}"

    @property
    def proposed(self) -> tuple[str, ...]:
        """The cuts to choose among: every skip connection, or the ranges around the middle of the blocks."""
        count = len(self.streams.sums)
        ranges = (f"residual_{first}_{count - 1 - first}" for first in range(count // 2))
        return (*self.skips, *(name for name in ranges if name in self))

    def __contains__(self, name: str) -> bool:
        return name in self.skips or bool(self._range(name))

    def _range(self, name: str) -> tuple[Kept, ...]:
        found = RESIDUAL.fullmatch(name)
        if self.skips or found is None:
            return ()
        first, last = int(found[1]), int(found[2])
        return self.streams.between(first, last) if first <= last < len(self.streams.sums) else ()

    def at(self, name: str) -> tuple[Kept, ...]:
        """Return what is kept at a cut."""
        return (Kept(self.skips[name]),) if name in self.skips else self._range(name)


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
    ancestry = Ancestry(model.graph)
    skips = [deep for deep in _skips(model.graph, ancestry) if saves(model.graph, deep)]
    named = {f"skip_{number}": deep for number, deep in enumerate(reversed(skips))}
    return FoundCuts(named, TokenStreams(model.graph, ancestry, () if named else tuple(_residuals(model.graph, ancestry))))


def cut_features(model: ir.Model, name: str) -> CutGraphs:
    """Return the graphs of a cut of a network, which `find_cuts` found."""
    return CutGraphs(_cut(model.clone(), name, _keep), _cut(model.clone(), name, _reuse))


def _cut(model: ir.Model, name: str, change: Callable[[ir.Model, Sequence[Kept]], None]) -> ir.Model:
    change(model, find_cuts(model).at(name))
    return model


def _keep(model: ir.Model, parts: Sequence[Kept]) -> None:
    """Add the output `kept`. What blocks add is added again, so that both graphs round alike."""
    graph, features = model.graph, list[ir.Value]()
    for part in parts:
        tape, added = ir.tape.Tape(), part.total
        if part.before is not None:
            before = part.before.on(tape)
            added = _like(tape.op("Sub", [part.total, before]), part.total)
            users = list(part.total.uses())
            _use(
                graph,
                part.total,
                [use for use in users if use[0] is not added.producer()],
                _like(tape.op("Add", [before, added]), part.total),
            )
        is_float = added.dtype == ir.DataType.FLOAT
        features.append(tape.op("Identity", [added]) if is_float else tape.op("Cast", [added], attributes={"to": ir.DataType.FLOAT}))
        _behind(graph, part.total, tape)
    tape = ir.tape.Tape()
    kept = features[0] if len(parts) == 1 else tape.op("Concat", [_flat(tape, one) for one in features], attributes={"axis": 1})
    kept.name, kept.type, kept.shape = KEPT, ir.TensorType(ir.DataType.FLOAT), _kept_shape(parts)
    graph.extend(tape.nodes)
    graph.outputs.append(kept)


def _reuse(model: ir.Model, parts: Sequence[Kept]) -> None:
    """Take the input `kept` in place of what computes it."""
    graph = model.graph
    kept = ir.Value(name=KEPT, type=ir.TensorType(ir.DataType.FLOAT), shape=_kept_shape(parts))
    inputs, begin = {str(value.name) for value in graph.inputs}, 0
    for part in parts:
        tape, given, users = ir.tape.Tape(), kept, list(part.total.uses())
        if len(parts) > 1:
            end = begin + part.size
            sliced = tape.op("Slice", [kept, *(_integers(tape, [one]) for one in (begin, end, 1))])
            given, begin = tape.op("Reshape", [sliced, _integers(tape, [0, *part.row])]), end
        if part.total.dtype != ir.DataType.FLOAT:
            given = _like(tape.op("Cast", [given], attributes={"to": part.total.dtype}), part.total)
        if part.before is not None:
            given = _like(tape.op("Add", [part.before.on(tape), given]), part.total)
        _use(graph, part.total, users, given)
        _behind(graph, part.total, tape)
    graph.inputs.append(kept)
    prune(model, {*inputs, KEPT})


def _use(graph: ir.Graph, replaced: ir.Value, users: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in users:
        node.replace_input_with(index, value)
    graph.outputs[:] = [value if output is replaced else output for output in graph.outputs]


def _behind(graph: ir.Graph, value: ir.Value, tape: ir.tape.Tape) -> None:
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, tape.nodes)


def _flat(tape: ir.tape.Tape, value: ir.Value) -> ir.Value:
    return tape.op("Reshape", [value, _integers(tape, [0, -1])])


def _integers(tape: ir.tape.Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], attributes={"value_ints": values})


def _kept_shape(parts: Sequence[Kept]) -> ir.Shape | None:
    """Return the shape of the features: that of a single part, or one row of all values of several."""
    first = parts[0].total.shape
    assert first is not None
    return first if len(parts) == 1 else ir.Shape([first[0], sum(part.size for part in parts)])


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    value.type, value.shape = other.type, other.shape
    return value


def _skips(graph: ir.Graph, ancestry: Ancestry) -> Iterator[ir.Value]:
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


def _residuals(graph: ir.Graph, ancestry: Ancestry) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the sums of the blocks, each with the block's input, where leaving out what the block adds saves something."""
    for node in graph:
        parts = [value for value in node.inputs if value is not None]
        out = node.outputs[0]
        if node.op_type != "Add" or len(parts) != 2 or row_of(out) is None or len(out.shape or ()) < 3 or out.dtype not in FLOATS:
            continue
        for before, added in (parts, parts[::-1]):
            if row_of(before) == row_of(out) and ancestry.depends(added, before) and saves(graph, added):
                yield out, before
