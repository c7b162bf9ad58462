"""Removes squeezes of axes that are longer than 1, which torch leaves as they are and ONNX does not allow."""

from __future__ import annotations

import onnx_ir as ir


class VoidSqueezes(ir.passes.InPlacePass):
    """`Squeeze(x, axis)` of an axis longer than 1 becomes `x`.

    Requires: shapes, as the exporter writes them. Ensures: no Squeeze of a single known axis has another length than 1.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        void = [node for node in model.graph if _is_void(node)]
        for node in void:
            x = node.inputs[0]
            assert x is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], x, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, bool(void))


def _is_void(node: ir.Node) -> bool:
    if node.op_type != "Squeeze" or len(node.inputs) < 2:
        return False
    x, axes = node.inputs
    chosen = None if axes is None else ir.convenience.get_const_tensor(axes)
    if x is None or x.shape is None or chosen is None or chosen.size != 1:
        return False
    length = x.shape[int(chosen.numpy().reshape(-1)[0])]
    return isinstance(length, int) and length != 1
