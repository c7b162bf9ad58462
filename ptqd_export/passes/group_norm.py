"""Write group norms with operators that every runtime has fast kernels for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptqd_export.passes.constants import constant

CHANNELWISE = ".channelwise."
"""Between the name of a parameter and the rank that a copy of it is shaped for."""

EPSILON = 1e-5
"""What the operator takes where the node does not say."""


class GroupNormToInstanceNorm(ir.passes.InPlacePass):
    """`GroupNormalization(x)` becomes Reshape to [batch, groups, -1], InstanceNormalization, Reshape back, Mul, Add.

    Requires: constant scale and bias, known rank. Ensures: no GroupNormalization is left; the arithmetic is that of the operator.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if node.op_type == "GroupNormalization"]
        for node in norms:
            _replace(model.graph, node)
        return ir.passes.PassResult(model, bool(norms))


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, scale, bias = node.inputs
    assert x is not None
    assert scale is not None
    assert bias is not None
    assert x.shape is not None
    groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes.get_float("epsilon", EPSILON)
    name = node.outputs[0].name
    ones = constant(graph, f"norm.ones.{groups}", np.ones(groups, np.float32))
    zeros = constant(graph, f"norm.zeros.{groups}", np.zeros(groups, np.float32))
    grouped_shape = constant(graph, f"norm.shape.{groups}", np.array([0, groups, -1], np.int64))
    tape = ir.tape.Tape()
    grouped = tape.op("Reshape", [x, grouped_shape])
    normal = tape.op("InstanceNormalization", [grouped, ones, zeros], attributes={"epsilon": epsilon})
    restored = tape.op("Reshape", [normal, tape.op("Shape", [x])])
    scaled = tape.op("Mul", [restored, _per_channel(graph, scale, len(x.shape))])
    out = tape.op("Add", [scaled, _per_channel(graph, bias, len(x.shape))])
    out.shape, out.type, out.name = node.outputs[0].shape, node.outputs[0].type, name
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [out])


def _per_channel(graph: ir.Graph, value: ir.Value, rank: int) -> ir.Value:
    """A [channels] initializer reshaped to broadcast over [batch, channels, ...]."""
    assert value.const_value is not None
    return constant(graph, f"{value.name}{CHANNELWISE}{rank}", value.const_value.numpy().reshape(-1, *[1] * (rank - 2)))


def normalized_input(node: ir.Node) -> ir.Value | None:
    """What a rewritten norm normalized, given the Reshape that restores its shape; None for any other node."""
    if node.op_type != "Reshape":
        return None
    normal, shape = (None if value is None else value.producer() for value in node.inputs)
    if normal is None or shape is None or (normal.op_type, shape.op_type) != ("InstanceNormalization", "Shape"):
        return None
    return shape.inputs[0]
