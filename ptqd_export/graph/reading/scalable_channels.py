"""Finds channels of a graph whose scale can be moved from the norm or layer that produces them to the layers that read them."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from calib.quantizers.preparation.channel_scaling import ScalableChannels
from ptqd_export.graph.reading.channel_paths import Axes, ChannelTrace, called_once, made_channels, moved_whole, rank_of

_HOMOGENEOUS = frozenset({"Relu"})
"""Operators with one input and `f(x / s) = f(x) / s` for positive `s`, beside those that only move channels."""


def scalable_channels(graph: ir.Graph, names: Collection[str]) -> list[ScalableChannels]:
    """Return the scalable channels that any of the named layers reads, in the order of the graph.

    Producers are layers, and the affine parameters of norms. Every path from a producer must end in layers that take these channels as
    their input channels. On the way it may pass only transpositions, reshapes that keep the channels together, products with other values
    (attention probabilities, gates), attention as its values, and ReLU. If a single path ends elsewhere, the channels are not scalable.
    Modules that are called twice are excluded, and so are norms whose factors are computed from a condition (adaptive norms).
    """
    once = called_once(graph)
    found = []
    for made in made_channels(graph, once):
        trace = ChannelTrace(once, _moved)
        if trace.follow(made.value, (made.axis,)) and not trace.consumers.isdisjoint(names):
            found.append(ScalableChannels(made.producer, made.first, tuple(sorted(trace.consumers))))
    return found


def _moved(node: ir.Node, index: int, axes: Axes) -> Axes | None:
    """The axes that count the channels after a node; None if a factor cannot pass the node."""
    if node.op_type in _HOMOGENEOUS or (node.op_type == "Mul" and rank_of(node.inputs[index]) == rank_of(node.outputs[0])):
        return axes
    return moved_whole(node, index, axes)
