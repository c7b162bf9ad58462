"""Follows channels of a graph from the norm or layer that produces them to the layers that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, TypeAlias

import onnx_ir as ir

from ptqd_export.graph.reading.graph_layers import WEIGHT, layer_name
from ptqd_export.graph.reading.parameter_values import parameter_name

Axes: TypeAlias = tuple[int, ...]
"""Axes of a value that together count its channels, most significant first, as negative indices. Heads are a separate axis."""

Moved: TypeAlias = Callable[[ir.Node, int, Axes], Axes | None]
"""Returns the axes that count the channels after a node, which reads them at an input of this index; None where they must not pass."""

_AFFINE = frozenset({"BatchNormalization", "GroupNormalization", "LayerNormalization", "Mul", "RMSNormalization"})
"""Operators that multiply channels by the weight of a norm."""


def called_once(graph: ir.Graph) -> set[str]:
    """Return the modules whose weight exactly one node reads."""
    readers = Counter(parameter_name(name) for name, value in graph.initializers.items() for _ in value.uses())
    return {name.removesuffix(WEIGHT) for name, count in readers.items() if name.endswith(WEIGHT) and count == 1}


@dataclass(frozen=True)
class Made:
    """Channels at the output of their producer: along an axis of a value, starting at the producer's channel `first`."""

    producer: str
    first: int
    value: ir.Value
    axis: int


def made_channels(graph: ir.Graph, once: Collection[str]) -> Iterator[Made]:
    """Yield the channels that layers and norms make, in the order of the graph."""
    for node in graph:
        for weight in node.inputs:
            producer = _module_of_weight(weight)
            axis = None if producer not in once else _output_axis(node)
            if producer is not None and axis is not None:
                yield from _pieces(Made(producer, 0, _with_bias(node.outputs[0], producer), axis))


def _module_of_weight(value: ir.Value | None) -> str | None:
    name = parameter_name(str(value.name)) if value is not None and value.is_initializer() else ""
    return name.removesuffix(WEIGHT) if name.endswith(WEIGHT) else None


def _output_axis(node: ir.Node) -> int | None:
    """The channel axis of the output of a layer or norm; None for other nodes that read a weight."""
    x, weight = node.inputs[:2]
    if layer_name(node) is not None:
        return 1 - rank_of(weight) if node.op_type == "Conv" else -1
    if node.op_type in ("BatchNormalization", "GroupNormalization"):
        return 1 - rank_of(x)
    (shaped,) = (value for value in node.inputs[:2] if _module_of_weight(value) is not None) if node.op_type in _AFFINE else (None,)
    wide = [] if shaped is None or shaped.shape is None else [axis for axis, size in enumerate(shaped.shape) if size != 1]
    return wide[0] - rank_of(shaped) if len(wide) == 1 else None


def _with_bias(value: ir.Value, producer: str) -> ir.Value:
    """Return the value after the producer's bias is added, if a separate node adds it."""
    for node, index in _sole_use(value, "Add"):
        other = node.inputs[1 - index]
        if other is not None and other.is_initializer() and parameter_name(str(other.name)) == f"{producer}.bias":
            return node.outputs[0]
    return value


def _pieces(made: Made) -> list[Made]:
    """Return each part separately if the channels are split: one half of a gated unit is scalable, the gate is not."""
    rank = rank_of(made.value)
    for node, _ in _sole_use(made.value, "Split"):
        if node.attributes.get_int("axis", 0) % rank == made.axis % rank:
            firsts = accumulate((shape_of(value)[made.axis] for value in node.outputs), initial=0)
            return [replace(made, first=first, value=value) for first, value in zip(firsts, node.outputs, strict=False)]
    return [made]


def _sole_use(value: ir.Value, op: str) -> list[tuple[ir.Node, int]]:
    """Return the node and input index of a value's only use, if that node is the given operator."""
    uses = [(use.node, use.idx) for use in value.uses()]
    return uses if len(uses) == 1 and uses[0][0].op_type == op and not value.is_graph_output() else []


class ChannelTrace:
    """Follows channels to the layers that read them.

    Args:
        once: modules that are called once.
        moved: says how channels pass an operator.

    Attributes:
        consumers: the layers that were found.
    """

    def __init__(self, once: Collection[str], moved: Moved) -> None:
        self._once = once
        self._moved = moved
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
        moved = self._moved(node, index, axes)
        return moved is not None and self.follow(node.outputs[0], moved)


def _reads_channels(node: ir.Node, axes: Axes) -> bool:
    if node.op_type == "Conv":
        return axes == (1 - rank_of(node.inputs[1]),) and node.attributes.get_int("group", 1) == 1
    return axes == (-1,) and node.attributes.get_int("transA", 0) == 0


def moved_whole(node: ir.Node, index: int, axes: Axes) -> Axes | None:
    """Return the axes after an operator that only moves or averages channels: `Moved` of whatever is the same for all positions."""
    if node.op_type in ("Dropout", "Identity"):
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
        return reshaped_axes(shape_of(node.inputs[0]), shape_of(node.outputs[0]), axes)
    return None


def reshaped_axes(before: Sequence[Any], after: Sequence[Any], axes: Axes) -> Axes | None:
    """Return the axes of the new shape that count the same channels; None if they are mixed with other axes."""
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


def rank_of(value: ir.Value | None) -> int:
    """Return the number of axes of a value; 0 if they are not known."""
    return len(shape_of(value))


def shape_of(value: ir.Value | None) -> list[Any]:
    """Return the sizes of a value's axes, numbers or symbols; empty if they are not known."""
    return [] if value is None or value.shape is None else list(value.shape)
