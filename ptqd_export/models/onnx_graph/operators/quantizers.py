"""The operators of quantized graphs, computed as they are written: integers are whole numbers in float tensors.

A float network that stores weights in integers needs none of them, so `operator_table.OPERATORS` does not list them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptqd_export.models.onnx_graph.operators.elementwise import cast
from ptqd_export.models.onnx_graph.operators.operator_call import OperatorCall, Value
from ptqd_export.models.onnx_graph.operators.operator_table import Operators

BFLOAT16 = 16
"""ONNX's number of the type."""


def _quantized(call: OperatorCall) -> Value:
    """Round to nearest, ties to even, and clamp to the range of the zero point's type."""
    zero = call.tensor(2)
    scaled = call.tensor(0) / call.tensor(1)
    if zero.is_floating_point():
        largest = torch.finfo(zero.dtype).max
        return scaled.float().clamp(-largest, largest).to(zero.dtype).to(scaled.dtype)
    range_ = torch.iinfo(zero.dtype)
    return scaled.round_().add_(zero).clamp_(range_.min, range_.max)


def _dequantized(call: OperatorCall) -> Value:
    """One scale for all values, for each index of an axis, or for each block of an axis."""
    x, scale, size = call.tensor(0).to(call.dtype), call.tensor(1), call.get("block_size", 0)
    if call.has(2):
        x = x - _along(call, call.tensor(2), x).to(call.dtype)
    return x * _along(call, scale, x, size)


def _along(call: OperatorCall, values: Tensor, x: Tensor, block_size: int = 0) -> Tensor:
    axis = call.get("axis", 1)
    if block_size:
        return values.repeat_interleave(block_size, dim=axis)
    if values.ndim != 1 or values.numel() == 1:
        return values
    return values.reshape([-1 if dimension == axis % x.ndim else 1 for dimension in range(x.ndim)])


def _cast(call: OperatorCall) -> Value:
    """A cast to bfloat16 rounds: a stand-in of a bfloat16 graph has one behind every operator. All other floats are one type."""
    found = cast(call, call.get("to"))
    return found.to(torch.bfloat16).to(found.dtype) if call.get("to") == BFLOAT16 and isinstance(found, Tensor) else found


QUANTIZERS: Operators = {
    ("", "QuantizeLinear"): _quantized,
    ("", "DequantizeLinear"): _dequantized,
    ("", "Cast"): _cast,
}
