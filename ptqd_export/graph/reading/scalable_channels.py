"""Finds channels of a graph whose scale can be moved from the norm or layer that produces them to the layers that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, TypeAlias

import onnx_ir as ir

from calib.quantizers.preparation.channel_scaling import ScalableChannels
from ptqd_export.graph.reading.graph_layers import WEIGHT, layer_name
from ptqd_export.graph.reading.parameter_values import parameter_name

Axes: TypeAlias = tuple[int, ...]
"""Axes of a value that together count its channels, most significant first, as negative indices. Heads are a separate axis."""

_HOMOGENEOUS = frozenset({"Dropout", "Identity", "Relu"})
"""Operators with one input and `f(x / s) = f(x) / s` for positive `s`."""

_AFFINE = frozenset({"BatchNormalization", "GroupNormalization", "LayerNormalization", "Mul", "RMSNormalization"})
"""Operators that multiply channels by the weight of a norm."""


def scalable_channels(graph: ir.Graph, names: Collection[str]) -> list[ScalableChannels]:
    """Return the scalable channels that any of the named layers reads, in the order of the graph.

    Producers are layers, and the affine parameters of norms. Every path from a producer must end in layers that take these channels as
    their input channels. On the way it may pass only transpositions, reshapes that keep the channels together, products with other values
    (attention probabilities, gates), attention as its values, and ReLU. If a single path ends elsewhere, the channels are not scalable.
    Modules that are called twice are excluded, and so are norms whose factors are computed from a condition (adaptive norms).
    """
    once = _called_once(graph)
    found = []
    for made in _made_channels(graph, once):
        trace = _ChannelTrace(once)
        if trace.follow(made.value, (made.axis,)) and not trace.consumers.isdisjoint(names):
            found.append(ScalableChannels(made.producer, made.first, tuple(sorted(trace.consumers))))
    return found


def _called_once(graph: ir.Graph) -> set[str]:
    """Return the modules whose weight exactly one node reads."""
    readers = Counter(parameter_name(name) for name, value in graph.initializers.items() for _ in value.uses())
    return {name.removesuffix(WEIGHT) for name, count in readers.items() if name.endswith(WEIGHT) and count == 1}


@dataclass(frozen=True)
class _Made:
    """Channels at the output of their producer: along an axis of a value, starting at the producer's channel `first`."""

    producer: str
    first: int
    value: ir.Value
    axis: int


def _made_channels(graph: ir.Graph, once: Collection[str]) -> Iterator[_Made]:
    for node in graph:
        for weight in node.inputs:
            producer = _module_of_weight(weight)
            axis = None if producer not in once else _output_axis(node)
            if producer is not None and axis is not None:
                yield from _pieces(_Made(producer, 0, _with_bias(node.outputs[0], producer), axis))


def _module_of_weight(value: ir.Value | None) -> str | None:
    name = parameter_name(str(value.name)) if value is not None and value.is_initializer() else ""
    return name.removesuffix(WEIGHT) if name.endswith(WEIGHT) else None


def _output_axis(node: ir.Node) -> int | None:
    """The channel axis of the output of a layer or norm; None for other nodes that read a weight."""
    x, weight = node.inputs[:2]
    if layer_name(node) is not None:
        return 1 - _rank(weight) if node.op_type == "Conv" else -1
    if node.op_type in ("BatchNormalization", "GroupNormalization"):
        return 1 - _rank(x)
    (shaped,) = (value for value in node.inputs[:2] if _module_of_weight(value) is not None) if node.op_type in _AFFINE else (None,)
    wide = [] if shaped is None or shaped.shape is None else [axis for axis, size in enumerate(shaped.shape) if size != 1]
    return wide[0] - _rank(shaped) if len(wide) == 1 else None


def _with_bias(value: ir.Value, producer: str) -> ir.Value:
    """Return the value after the producer's bias is added, if a separate node adds it."""
    for node, index in _sole_use(value, "Add"):
        other = node.inputs[1 - index]
        if other is not None and other.is_initializer() and parameter_name(str(other.name)) == f"{producer}.bias":
            return node.outputs[0]
    return value


def _pieces(made: _Made) -> list[_Made]:
    """Return each part separately if the channels are split: one half of a gated unit is scalable, the gate is not."""
    rank = _rank(made.value)
    for node, _ in _sole_use(made.value, "Split"):
        if node.attributes.get_int("axis", 0) % rank == made.axis % rank:
            firsts = accumulate((_shape(value)[made.axis] for value in node.outputs), initial=0)
            return [_Made(made.producer, first, value, made.axis) for first, value in zip(firsts, node.outputs, strict=False)]
    return [made]


def _sole_use(value: ir.Value, op: str) -> list[tuple[ir.Node, int]]:
    """Return the node and input index of a value's only use, if that node is the given operator."""
    uses = [(use.node, use.idx) for use in value.uses()]
    return uses if len(uses) == 1 and uses[0][0].op_type == op and not value.is_graph_output() else []


class _ChannelTrace:
    """Follows channels to the layers that read them."""

    def __init__(self, once: Collection[str]) -> None:
        self._once = once
        self._visited: set[ir.Node] = set()
        self.consumers: set[str] = set()

    def follow(self, value: ir.Value, axes: Axes) -> bool:
        """Whether every use of the value leads only to layers."""
        uses = list(value.uses())
        return bool(uses) and not value.is_graph_output() and all(self._use(use.node, use.idx, axes) for use in uses)

    def _use(self, node: ir.Node, index: int, axes: Axes) -> bool:
        if node.op_type == "Shape":
            return True
        if node in self._visited:  # through another of its inputs: a product would be scaled twice
            return False
        self._visited.add(node)
        name = layer_name(node)
        if name is not None:
            self.consumers.add(name)
            return name in self._once and index == 0 and _reads_channels(node, axes)
        moved = _moved(node, index, axes)
        return moved is not None and self.follow(node.outputs[0], moved)


def _reads_channels(node: ir.Node, axes: Axes) -> bool:
    if node.op_type == "Conv":
        return axes == (1 - _rank(node.inputs[1]),) and node.attributes.get_int("group", 1) == 1
    return axes == (-1,) and node.attributes.get_int("transA", 0) == 0


def _moved(node: ir.Node, index: int, axes: Axes) -> Axes | None:
    """The axes that count the channels after a node; None if a factor cannot pass the node."""
    if node.op_type in _HOMOGENEOUS or (node.op_type == "Mul" and _rank(node.inputs[index]) == _rank(node.outputs[0])):
        return axes
    if node.op_type == "MatMul":
        summed = -1 if index == 0 else -2
        return None if summed in axes else axes
    if node.op_type == "Attention":  # only the channels of the values pass
        return axes if index == 2 else None
    if node.op_type == "Transpose":
        perm = node.attributes["perm"].as_ints()
        return tuple(perm.index(axis + len(perm)) - len(perm) for axis in axes)
    if node.op_type == "Reshape" and index == 0:
        return _reshaped(_shape(node.inputs[0]), _shape(node.outputs[0]), axes)
    return None


def _reshaped(before: Sequence[Any], after: Sequence[Any], axes: Axes) -> Axes | None:
    """The axes of the new shape that count the same channels; None if they are mixed with other axes."""
    moved: list[int] = []
    left = list(axes)
    blocks = {old[0]: (old, new) for old, new in _blocks(before, after)}
    while left:
        old, new = blocks.get(left[0], ((), ()))
        if not old or tuple(left[: len(old)]) != old:
            return None
        moved.extend(new)
        del left[: len(old)]
    return tuple(moved)


def _blocks(before: Sequence[Any], after: Sequence[Any]) -> Iterator[tuple[Axes, Axes]]:
    """Yield the smallest runs of axes with the same elements in both shapes, from the last axis back to one of unknown size.

    Axes of size 1 are skipped.
    """
    old, new = ([(axis - len(shape), size) for axis, size in enumerate(shape) if size != 1] for shape in (before, after))
    while old and new:
        runs = ([old.pop()], [new.pop()])
        while all(isinstance(size, int) for run in runs for _, size in run):
            counts = [prod(size for _, size in run) for run in runs]
            if counts[0] == counts[1]:
                yield tuple(axis for axis, _ in runs[0]), tuple(axis for axis, _ in runs[1])
                break
            short, rest = (runs[0], old) if counts[0] < counts[1] else (runs[1], new)
            if not rest:
                return
            short.insert(0, rest.pop())
        else:
            return


def _rank(value: ir.Value | None) -> int:
    return len(_shape(value))


def _shape(value: ir.Value | None) -> list[Any]:
    return [] if value is None or value.shape is None else list(value.shape)
