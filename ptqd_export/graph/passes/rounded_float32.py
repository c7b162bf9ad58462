"""Rewrites a bfloat16 graph for runtimes that have only float32 kernels, so that it computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

NARROW = ir.DataType.BFLOAT16
WIDE = ir.DataType.FLOAT


class ToRoundedFloat32(ir.passes.InPlacePass):
    """Converts a bfloat16 graph to float32, by these rules:

    1. bfloat16 initializers become float32 initializers with the same values;
    2. bfloat16 nodes compute in float32, and a Cast to bfloat16 and back rounds each result. Hardware does the same: its products and
       norms sum in float32 and round once at the end. Only the order of the sums may differ.

    Ensures: the same inputs, outputs and layer names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        stored = [value for value in graph.initializers.values() if value.dtype == NARROW]
        for value in stored:
            assert value.const_value is not None
            value.const_value = _widened(value.const_value)
            value.type = ir.TensorType(WIDE)
        computed = [node for node in graph if any(out.dtype == NARROW for out in node.outputs)]
        for node in computed:
            _compute_wide(graph, node)
        return ir.passes.PassResult(model, bool(stored or computed))


def _compute_wide(graph: ir.Graph, node: ir.Node) -> None:
    """Apply rule 2 to a node."""
    if "value" in node.attributes:  # Constant and ConstantOfShape
        node.attributes["value"] = ir.AttrTensor("value", _widened(node.attributes["value"].as_tensor()))
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", WIDE)
    for out in node.outputs:
        users = list(out.uses())
        narrow = ir.node("Cast", [out], attributes={"to": NARROW})
        wide = ir.node("Cast", [narrow.outputs[0]], attributes={"to": WIDE})
        for value, kind in ((out, WIDE), (narrow.outputs[0], NARROW), (wide.outputs[0], WIDE)):
            value.shape, value.type = out.shape, ir.TensorType(kind)
        for use in users:
            use.node.replace_input_with(use.idx, wide.outputs[0])
        graph.insert_after(node, [narrow, wide])


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
