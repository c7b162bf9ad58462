"""Gives queries that may see no key at all the zeros that PyTorch's attention gives them.

The exporter masks scores with the lowest finite number and clears NaN behind the softmax. But a row of equal scores, however low, has a
softmax that is uniform, not NaN: such queries would see every key. They are the padding in front of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir


class MaskedRows(ir.passes.InPlacePass):
    """`Softmax(x + Where(mask, 0, lowest))` whose NaN are cleared becomes `Softmax(x + Where(mask, 0, -inf))`.

    Requires: float32. Ensures: a row without a key that may be seen has weights of 0.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        masks = [node for node in model.graph if _masks_scores(node)]
        for node in masks:
            infinity = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(-np.inf))})
            model.graph.insert_before(node, infinity)
            node.replace_input_with(2, infinity.outputs[0])
        return ir.passes.PassResult(model, bool(masks))


def _masks_scores(node: ir.Node) -> bool:
    lowest = node.inputs[2] if node.op_type == "Where" else None
    stored = None if lowest is None else ir.convenience.get_const_tensor(lowest)
    if stored is None or stored.size != 1 or stored.numpy().reshape(-1)[0] != np.finfo(np.float32).min:
        return False
    softmaxes = [user for add in _users(node) for user in _users(add)]
    return bool(softmaxes) and all(any(user.op_type == "IsNaN" for user in _users(one)) for one in softmaxes)


def _users(node: ir.Node) -> Iterator[ir.Node]:
    return (use.node for use in node.outputs[0].uses())
