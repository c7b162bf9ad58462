"""Finds channels of a graph that can be rotated by the weights of the layers around them, so that nothing is left to compute."""

from __future__ import annotations

from collections.abc import Collection
from math import gcd

import onnx_ir as ir

from calib.quantizers.preparation.rotation import FoldedRotation, folded_block
from ptqd_export.graph.reading.channel_paths import Axes, ChannelTrace, Made, called_once, made_channels, moved_whole, shape_of
from ptqd_export.graph.reading.graph_layers import layer_name


def rotatable_channels(graph: ir.Graph, names: Collection[str]) -> list[FoldedRotation]:
    """Return the rotations that linear layers can do to their outputs for the named layers, in the order of the graph.

    A rotation passes what treats all channels of a block alike: transpositions, reshapes that keep the channels together, and products with
    attention probabilities, which are one matrix for all channels of a head. So blocks lie within a head. Nothing elementwise lets a
    rotation pass, neither an activation function nor a factor for each channel. In transformers, what is left are the values of attention,
    up to its output layer.
    """
    once = called_once(graph)
    linear = {name for node in graph if node.op_type != "Conv" and (name := layer_name(node)) is not None}
    found = [_rotation(made, once & linear, names) for made in made_channels(graph, once & linear)]
    return [one for one in found if one is not None]


def _rotation(made: Made, once: Collection[str], names: Collection[str]) -> FoldedRotation | None:
    """Return the rotation of the channels that a layer makes; None if they cannot be rotated."""
    *positions, channels = shape_of(made.value) or [None]
    if not positions or not isinstance(channels, int):
        return None
    sizes = [channels]

    def moved(node: ir.Node, index: int, axes: Axes) -> Axes | None:
        sizes.append(_innermost(node, index, axes))
        return None if node.op_type == "MatMul" and axes[-1] < -2 else moved_whole(node, index, axes)

    trace = ChannelTrace(once, moved)
    if not trace.follow(made.value, (made.axis,)) or trace.consumers.isdisjoint(names):
        return None
    size = folded_block(gcd(*sizes))
    return None if size is None else FoldedRotation(made.producer, made.first, channels, size, tuple(sorted(trace.consumers)))


def _innermost(node: ir.Node, index: int, axes: Axes) -> int:
    """Return how many neighbouring channels the node treats alike: those of a head."""
    shape = shape_of(node.inputs[index])
    size = shape[axes[-1]] if shape else None
    heads = node.attributes.get_int("kv_num_heads", 1) if node.op_type == "Attention" and len(axes) == 1 else 1
    return int(size) // heads if isinstance(size, int) else 1
