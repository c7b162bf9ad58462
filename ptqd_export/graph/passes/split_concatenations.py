"""Splits the layers that read a concatenation, so that each part gets its own quantizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from calib.quantizers.preparation.split_layer import part_name
from ptqd_export.graph.passes.group_norm import normalized_input
from ptqd_export.graph.reading.constants import constant
from ptqd_export.graph.reading.graph_layers import WEIGHT, weighted_nodes
from ptqd_export.graph.reading.transposed_weights import TRANSPOSED

_CHANNEL_WISE = frozenset(
    {
        "Add", "BatchNormalization", "Cast", "Clip", "Div", "Dropout", "Elu", "Erf", "Gelu", "GroupNormalization", "HardSwish", "Identity",
        "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Mish", "Mul", "Neg", "Relu", "Sigmoid", "Softplus", "Sub", "Swish",
        "Tanh",
    }
)  # fmt: skip
"""Operators that keep every channel in its place if all their inputs except constants come from the same channels."""


def concatenated_inputs(graph: ir.Graph, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return the named layers that read a concatenation of channels, directly or through norms and activations, with the part sizes."""
    nodes = weighted_nodes(graph)
    found = {name: {_parts(node) for node in nodes[name]} for name in nodes if name in names}
    return {name: next(iter(parts)) for name, parts in found.items() if len(parts) == 1 and () not in parts}


def _parts(node: ir.Node) -> tuple[int, ...]:
    """Sizes of the parts of a layer's input; empty if the input is not a concatenation."""
    x, weight = node.inputs[:2]
    assert weight is not None
    assert weight.shape is not None
    concat = _origin(x)
    if concat is None or concat.outputs[0].shape is None or node.attributes.get_int("group", 1) > 1:
        return ()
    rank = concat.outputs[0].shape.rank()
    channel = 1 if node.op_type == "Conv" else rank - 1
    if concat.attributes["axis"].as_int() % rank != channel:
        return ()
    sizes = [value.shape[channel] for value in concat.inputs if value is not None and value.shape is not None]
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if len(known) == len(concat.inputs) else ()


def _origin(value: ir.Value | None) -> ir.Node | None:
    """Return the Concat whose channels a value still has, one by one; None if there is none."""
    node = None if value is None else value.producer()
    if node is None or node.op_type == "Concat":
        return node
    if node.op_type in _CHANNEL_WISE:
        origins = {_origin(x) for x in node.inputs if x is not None and not x.is_initializer()}
        return origins.pop() if len(origins) == 1 else None
    return _origin(normalized_input(node))


class SplitConcatenations(ir.passes.InPlacePass):
    """Replaces a layer of a concatenated input with a sum of layers, like `calib.quantizers.preparation.split_layer.SplitLayer` in torch.

    Requires: initializers named by `ParameterNames` and `TransposedWeights`; an input of the given sizes. Ensures: part i of layer `<name>`
    reads `<name>.parts.<i>.weight`, and the bias is called `<name>.parts.0.bias`. All layers of one input share its Split, and layers that
    read a concatenation directly read its parts.
    """

    def __init__(self, parts: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self._parts = parts

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = weighted_nodes(model.graph)
        splitter = _Splitter(model.graph)
        for name, sizes in self._parts.items():
            for node in nodes[name]:
                splitter.split(node, name, sizes)
            bias = model.graph.initializers.get(f"{name}.bias")
            if bias is not None:
                bias.name = f"{part_name(name, 0)}.bias"
        return ir.passes.PassResult(model, bool(self._parts))


class _Splitter:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._pieces: dict[ir.Value, Sequence[ir.Value]] = {}

    def split(self, node: ir.Node, name: str, sizes: Sequence[int]) -> None:
        x, _, *bias = node.inputs
        assert x is not None
        pieces = self._of(x, sizes, 1 if node.op_type == "Conv" else -1)
        tape = ir.tape.Tape()
        outputs = []
        for i, (piece, weight) in enumerate(zip(pieces, self._weights(node, name, sizes), strict=True)):
            outputs.append(tape.op(node.op_type, [piece, weight, *(bias if i == 0 else ())], attributes=dict(node.attributes)))
        total, *others = outputs
        for out in others:
            total = tape.op("Add", [total, out])
        (old,) = node.outputs
        for out in (*outputs, total):
            out.shape, out.type = old.shape, old.type
        total.name = old.name
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], tape.nodes, [old], [total])

    def _weights(self, node: ir.Node, name: str, sizes: Sequence[int]) -> list[ir.Value]:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        form = TRANSPOSED if node.op_type == "MatMul" else ""
        axis = 0 if form else 1
        pieces = np.split(weight.const_value.numpy(), list(accumulate(sizes))[:-1], axis)
        return [constant(self._graph, f"{part_name(name, i)}{WEIGHT}{form}", np.ascontiguousarray(piece)) for i, piece in enumerate(pieces)]

    def _of(self, x: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Return the parts of a value, split right after its producer so that all layers that read the value can share them."""
        producer = x.producer()
        assert producer is not None
        if x not in self._pieces:
            self._pieces[x] = [value for value in producer.inputs if value is not None]
            if producer.op_type != "Concat":
                self._pieces[x] = self._cut(x, producer, sizes, axis)
        return self._pieces[x]

    def _cut(self, x: ir.Value, producer: ir.Node, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        stored = constant(self._graph, f"split.{'.'.join(map(str, sizes))}", np.array(sizes, np.int64))
        node = ir.node("Split", [x, stored], attributes={"axis": axis}, num_outputs=len(sizes))
        for piece, size in zip(node.outputs, sizes, strict=True):
            piece.type = x.type
            piece.shape = None if x.shape is None else _resized(x.shape, axis, size)
        self._graph.insert_after(producer, node)
        return node.outputs


def _resized(shape: ir.Shape, axis: int, size: int) -> ir.Shape:
    dimensions = list(shape)
    dimensions[axis] = size
    return ir.Shape(dimensions)
