"""Adds the unquantized output of chosen weighted layers to the outputs of a graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ptqd_export.graph.passes.layer_outputs import SHOWN, quantized_layer_name, stored_name
from ptqd_export.graph.passes.low_rank_branches import with_branch


class ShowRawLayerOutputs(ir.passes.InPlacePass):
    """Makes the output of every chosen layer an output of the graph, called `shown.<layer>`, by these rules:

    1. the output is that of the module: with its branch and its bias, and before any quantizer;
    2. the parts of a split layer are layers of their own;
    3. a layer that is called twice shows the first call.

    An output between a layer and its quantizer keeps a runtime from fusing the two: this is for graphs that run as written.

    Args:
        chosen: whether to show a layer, given its name and the value to show.

    Requires: initializers named by `ParameterNames`, optionally changed by `InsertQuantization`. Ensures: the graph's own outputs come
    first; the others follow in the order of the layers.
    """

    def __init__(self, chosen: Callable[[str, ir.Value], bool] = lambda _name, _value: True) -> None:
        super().__init__()
        self._chosen = chosen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found: dict[str, ir.Value] = {}
        for node in model.graph:
            name = quantized_layer_name(node)
            if name is not None:
                found.setdefault(name, _with_bias(with_branch(node.outputs[0], name), name))
        shown = {name: value for name, value in found.items() if self._chosen(name, value)}
        for name, value in shown.items():
            _show(model.graph, name, value)
        return ir.passes.PassResult(model, bool(shown))


def _with_bias(value: ir.Value, name: str) -> ir.Value:
    """Return the value behind the node that adds the layer's bias, if there is such a node."""
    for use in value.uses():
        if use.node.op_type == "Add" and any(stored_name(other) == f"{name}.bias" for other in use.node.inputs if other is not value):
            return use.node.outputs[0]
    return value


def _show(graph: ir.Graph, name: str, value: ir.Value) -> None:
    node = value.producer()
    assert node is not None
    tape = ir.tape.Tape()
    out = tape.op("Identity", [value])
    out.name, out.shape, out.type = f"{SHOWN}{name}", value.shape, value.type
    graph.insert_after(node, tape.nodes)
    graph.outputs.append(out)
