"""Rewrites group norms with operators that every runtime has fast kernels for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptqd_export.graph.reading.constants import constant

EPSILON = 1e-5
"""The operator's default epsilon."""


class GroupNormToInstanceNorm(ir.passes.InPlacePass):
    """`GroupNormalization(x)` becomes Reshape to [batch, groups, -1], InstanceNormalization, Reshape back, BatchNormalization.

    Batch normalization with a mean of 0 and a variance of 1 is the runtime's only kernel that scales and shifts channels in one pass.

    Requires: constant scale and bias, and a known shape except for the batch. Ensures: no GroupNormalization is left; the arithmetic is
    that of the operator, and scale and bias are read unchanged.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if node.op_type == "GroupNormalization"]
        for node in norms:
            _replace(model.graph, node)
        return ir.passes.PassResult(model, bool(norms))


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, scale, bias = node.inputs
    assert x is not None
    assert x.shape is not None
    groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes.get_float("epsilon", EPSILON)
    sizes = [size for size in x.shape[1:] if isinstance(size, int)]
    assert len(sizes) == len(x.shape) - 1
    tape = ir.tape.Tape()
    grouped = tape.op("Reshape", [x, _shape(graph, groups, -1)])
    normal = tape.op("InstanceNormalization", [grouped, *_ones_and_zeros(graph, groups)], attributes={"epsilon": epsilon})
    restored = tape.op("Reshape", [normal, _shape(graph, *sizes)])
    variance, mean = _ones_and_zeros(graph, sizes[0])
    out = tape.op("BatchNormalization", [restored, scale, bias, mean, variance], attributes={"epsilon": 0.0})
    for value in (restored, out):
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
    out.name = node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [out])


def _shape(graph: ir.Graph, *sizes: int) -> ir.Value:
    """A Reshape target: the batch size is kept, the given sizes follow."""
    return constant(graph, f"norm.shape.{'.'.join(map(str, sizes))}", np.array([0, *sizes], np.int64))


def _ones_and_zeros(graph: ir.Graph, size: int) -> tuple[ir.Value, ir.Value]:
    return (
        constant(graph, f"norm.ones.{size}", np.ones(size, np.float32)),
        constant(graph, f"norm.zeros.{size}", np.zeros(size, np.float32)),
    )


def normalized_input(node: ir.Node) -> ir.Value | None:
    """Return the input of a rewritten norm, given the Reshape that restores its shape; None for any other node."""
    normal = _producer(node, "Reshape", "InstanceNormalization")
    grouping = None if normal is None else _producer(normal, "InstanceNormalization", "Reshape")
    return None if grouping is None else grouping.inputs[0]


def _producer(node: ir.Node, op: str, producer_op: str) -> ir.Node | None:
    """Return the producer of a node's first input if node and producer are the given operators, otherwise None."""
    x = node.inputs[0] if node.op_type == op else None
    producer = None if x is None else x.producer()
    return producer if producer is not None and producer.op_type == producer_op else None
