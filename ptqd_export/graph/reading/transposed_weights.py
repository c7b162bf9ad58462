"""Folds the transposition of a linear layer's weight into the weight."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptqd_export.graph.reading.constants import computed, constant

TRANSPOSED = ".T"


def transposed(matrix: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the transpose of a matrix."""
    return computed(lambda: ir.tensor(np.ascontiguousarray(matrix.numpy().T)), matrix.dtype, matrix.shape.numpy()[::-1])


class TransposedWeights(ir.passes.InPlacePass):
    """Replaces `MatMul(x, Transpose(W))` with `MatMul(x, W.T)` and an initializer called `<name>.T`.

    Requires: 2-D weights transposed by a node. Ensures: every such MatMul reads an initializer whose name identifies the parameter, which
    generic constant folding would rename.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = 0
        for node in list(model.graph):
            weight = node.inputs[0] if node.op_type == "Transpose" else None
            if weight is None or not weight.is_initializer() or weight.const_value is None or len(weight.const_value.shape) != 2:
                continue
            value = constant(model.graph, f"{weight.name}{TRANSPOSED}", transposed(weight.const_value))
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
            folded += 1
        return ir.passes.PassResult(model, folded > 0)
