"""Adds the output of every weighted layer to the outputs of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import onnx_ir as ir

from calib.quantizers.preparation.split_layer import whole_name
from ptqd_export.graph.passes.block_floats import MXFP8_DEQUANTIZE
from ptqd_export.graph.passes.low_rank_branches import with_branch
from ptqd_export.graph.reading.graph_layers import WEIGHT
from ptqd_export.graph.reading.transposed_weights import TRANSPOSED

SHOWN = "shown."

_FORMS = (".half", ".int", TRANSPOSED)
"""Suffixes that passes append to the name of a weight, the last one first."""

_WEIGHT_OPS = frozenset({"DequantizeLinear", "Cast", "Mul", "Sub", "Transpose", MXFP8_DEQUANTIZE})
"""Operators between an integer weight and its layer."""


class ShowLayerOutputs(ir.passes.InPlacePass):
    """Makes the output of every weighted layer an output of the graph, called `shown.<layer>`, by these rules:

    1. a layer whose output is quantized immediately shows the result of its integer kernel through an additional DequantizeLinear: an
       output in between would keep the runtime from fusing the layer, and might hide the fault;
    2. a layer that was split into parts shows the sum of the parts;
    3. a layer that is called twice shows the first call;
    4. every output is float32, whatever type the layer computes in.

    Requires: initializers named by `ParameterNames`, optionally changed by `InsertQuantization`. Ensures: the graph's own outputs come
    first; the others follow in the order of the layers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        shown = {whole_name(name): _whole(node, name) for name, node in _layers(model.graph)}
        for name, value in shown.items():
            _show(model.graph, name, value)
        return ir.passes.PassResult(model, bool(shown))


def _layers(graph: ir.Graph) -> Iterator[tuple[str, ir.Node]]:
    """Yield the weighted layers in order, each once; a split layer is represented by its last part."""
    found = dict[str, tuple[str, ir.Node]]()
    for node in graph:
        name = quantized_layer_name(node)
        if name is not None and found.setdefault(whole_name(name), (name, node))[0] != name:
            found[whole_name(name)] = (name, node)
    yield from found.values()


def quantized_layer_name(node: ir.Node) -> str | None:
    """Name of the module that a node was traced from, with a float or an integer weight; None if the node has no weight."""
    name = stored_name(node.inputs[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
    return name.removesuffix(WEIGHT) if name is not None and name.endswith(WEIGHT) else None


def stored_name(value: ir.Value | None) -> str | None:
    """Name of the parameter that a value is computed from, stored as floats or as integers; None if it is no parameter."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.op_type in _WEIGHT_OPS else None
    return None if value is None or value.name is None else reduce(str.removesuffix, _FORMS, value.name)


def _whole(node: ir.Node, name: str) -> ir.Value:  # rule 2
    value = with_branch(node.outputs[0], name)
    summed = whole_name(name) == name
    while not summed:
        ((reader, _),) = value.uses()
        value, summed = reader.outputs[0], reader.op_type == "Add"
    return value


def _show(graph: ir.Graph, name: str, value: ir.Value) -> None:
    kernel = _quantized_at_once(value)
    last, seen, tape = kernel or value.producer(), value, ir.tape.Tape()
    assert last is not None
    if kernel is not None:  # rule 1
        seen = tape.op("DequantizeLinear", [kernel.outputs[0], *kernel.inputs[1:]])
        seen.shape, seen.type = value.shape, value.type
    out = tape.op("Cast", [seen], attributes={"to": ir.DataType.FLOAT})  # rule 4
    out.name, out.shape, out.type = f"{SHOWN}{name}", value.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(last, tape.nodes)
    graph.outputs.append(out)


def _quantized_at_once(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that is the only reader of a value, directly or after a Clip; None if there is no such reader."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output():
        return None
    (reader,) = readers
    return _quantized_at_once(reader.outputs[0]) if reader.op_type == "Clip" else reader if reader.op_type == "QuantizeLinear" else None
