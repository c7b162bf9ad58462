"""Stores the weights of linear layers in 8 bits, for networks that compute in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from calib.quantizers.scale_search import weight_scale
from ptqd_export.graph.reading.constants import constant

BITS = 8


class WeightOnly(ir.passes.InPlacePass):
    """Stores the second inputs of MatMul and Gemm as INT8 behind a DequantizeLinear: symmetric, with a scale for each output channel.

    Requires: float32 weights. Ensures: all else is unchanged; weights that `round_weights` rounded keep their values.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        weights = {value: node for node in graph for value in _weight(node)}
        for value, node in weights.items():
            assert value.const_value is not None
            axis = 0 if "transB" in node.attributes and node.attributes.get_int("transB") else 1
            weight = torch.from_numpy(np.array(value.const_value.numpy())).movedim(axis, 0).contiguous()
            quantizer = weight_scale(weight, BITS, "max")
            integers = quantizer.integers(weight).movedim(0, axis).contiguous().numpy()
            scale = quantizer.scale.numpy()
            parts = {
                "int": integers,
                "scale": scale,
                "zero_point": np.zeros(len(scale), np.int8),
            }  # ONNX Runtime fails on a missing zero point
            stored = [constant(graph, f"{value.name}.{name}", array) for name, array in parts.items()]
            tape = ir.tape.Tape()
            value.replace_all_uses_with(tape.op("DequantizeLinear", stored, attributes={"axis": axis}))
            graph.insert_before(graph[0], tape.nodes)
            del graph.initializers[str(value.name)]
        return ir.passes.PassResult(model, bool(weights))


def _weight(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the weight of a linear layer, or nothing."""
    if node.op_type not in ("MatMul", "Gemm"):
        return ()
    value = node.inputs[1]
    known = value is not None and value.is_initializer() and value.const_value is not None
    return (value,) if known and value is not None and value.shape is not None and len(value.shape) == 2 else ()


def round_weights(network: nn.Module) -> None:
    """Round the weights of a network's linear layers, in place, to the values that `WeightOnly` stores."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                quantizer = weight_scale(layer.weight, BITS, "max")
                layer.weight.copy_(quantizer.dequantize(quantizer.integers(layer.weight)))
