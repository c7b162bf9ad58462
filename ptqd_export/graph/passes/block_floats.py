"""The nodes of floats in blocks (NVFP4 and MXFP8) as TensorRT reads them, and their parts for the other passes to recognise.

Some are operators of TensorRT's own: ONNX quantizes no activations in blocks whose scales are found at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.quantizers.floats import mxfp8, nvfp4
from calib.quantizers.floats.mxfp8 import Mxfp8WeightQuantizer
from calib.quantizers.floats.nvfp4 import Nvfp4ActivationQuantizer, Nvfp4WeightQuantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from ptqd_export.graph.reading.constants import computed, constant

DOMAIN = "trt"
FP4_QUANTIZE = "TRT_FP4DynamicQuantize"
MXFP8_QUANTIZE = "TRT_MXFP8DynamicQuantize"
MXFP8_DEQUANTIZE = "TRT_MXFP8DequantizeLinear"

OPSET = 23
"""First opset with 4-bit floats."""

IR_VERSION = 11
"""First version of ONNX's file format with 4-bit floats."""

MOST_AXES = 3
"""TensorRT quantizes tensors of two or three axes in blocks."""

FLOAT8, FLOAT4 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1


def declare(model: ir.Model) -> None:
    """Raise the versions of a model to those that floats in blocks need."""
    model.opset_imports[""] = max(OPSET, model.opset_imports[""])
    model.opset_imports[DOMAIN] = 1
    model.ir_version = max(IR_VERSION, model.ir_version)


def is_fp4(node: ir.Node) -> bool:
    """Whether a node belongs to NVFP4 and so has float32 scales and results, whatever surrounds it."""
    return node.op_type == FP4_QUANTIZE or (node.op_type == "DequantizeLinear" and (_reads_fp4(node) or _scales_fp4(node)))


def _reads_fp4(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and x.dtype == FLOAT4


def _scales_fp4(node: ir.Node) -> bool:
    """Whether the results of a DequantizeLinear are scales of 4-bit floats."""
    return any(use.idx == 1 and use.node.op_type == "DequantizeLinear" and _reads_fp4(use.node) for use in node.outputs[0].uses())


def block_weight(graph: ir.Graph, tape: ir.tape.Tape, layer: QuantizedLayer, *, transposed: bool) -> ir.Value:
    """Return the dequantized weight, [channels, inputs] or transposed. Blocks lie along the last axis of what is stored."""
    name, quantizer = f"{layer.layer.name}.weight", layer.weight
    if isinstance(quantizer, Nvfp4WeightQuantizer):
        codes = computed(lambda: _packed(layer), FLOAT4, layer.layer.shape)
        scale = constant(graph, f"{name}.scale", as_float8(quantizer.block_scale.float().numpy()))
        whole = constant(graph, f"{name}.global_scale", np.asarray(quantizer.global_scale, np.float32))
        out = _nvfp4(tape, constant(graph, f"{name}.int", codes), scale, whole)
    else:
        assert isinstance(quantizer, Mxfp8WeightQuantizer)
        values = computed(lambda: ir.tensor(as_float8(layer.integers.float().numpy())), FLOAT8, layer.layer.shape)
        out = _mxfp8(tape, constant(graph, f"{name}.int", values), constant(graph, f"{name}.scale", quantizer.block_scale.numpy()))
    out.shape = ir.Shape(layer.layer.shape)
    if not transposed:
        return out
    turned = tape.op("Transpose", [out], attributes={"perm": [1, 0]})
    turned.shape, turned.type = ir.Shape(layer.layer.shape[::-1]), out.type
    return turned


def block_activation(graph: ir.Graph, tape: ir.tape.Tape, x: ir.Value, quantizer: ActivationQuantizer) -> ir.Value:
    """Return an activation that was quantized in blocks of its last axis and dequantized."""
    assert x.shape is not None
    flat = x if len(x.shape) <= MOST_AXES else _reshaped(tape, x, constant(graph, "shape.rows", np.array([-1, x.shape[-1]], np.int64)))
    if isinstance(quantizer, Nvfp4ActivationQuantizer):
        whole = constant(graph, f"global_scale.{quantizer.scale!r}", np.asarray(quantizer.scale, np.float32))
        attributes: dict[str, Any] = {"axis": -1, "block_size": nvfp4.BLOCK, "scale_type": FLOAT8}
        codes, scale = _two(tape, FP4_QUANTIZE, [flat, whole], attributes, (FLOAT4, FLOAT8))
        out = _nvfp4(tape, codes, scale, whole)
    else:
        attributes = {"axis": -1, "block_size": mxfp8.BLOCK, "output_dtype": FLOAT8}
        out = _mxfp8(tape, *_two(tape, MXFP8_QUANTIZE, [flat], attributes, (FLOAT8, ir.DataType.UINT8)))
    out.shape = flat.shape
    return out if flat is x else _reshaped(tape, out, tape.op("Shape", [x]), x)


def _nvfp4(tape: ir.tape.Tape, codes: ir.Value, scale: ir.Value, whole: ir.Value) -> ir.Value:
    scales = _float(tape.op("DequantizeLinear", [scale, whole]))
    return _float(tape.op("DequantizeLinear", [codes, scales], attributes={"axis": -1, "block_size": nvfp4.BLOCK}))


def _mxfp8(tape: ir.tape.Tape, values: ir.Value, scale: ir.Value) -> ir.Value:
    attributes = {"axis": -1, "block_size": mxfp8.BLOCK, "output_dtype": ir.DataType.FLOAT}
    return _float(tape.op(MXFP8_DEQUANTIZE, [values, scale], attributes=attributes, domain=DOMAIN))


def _float(value: ir.Value) -> ir.Value:
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value


def _two(
    tape: ir.tape.Tape, name: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], types: tuple[ir.DataType, ir.DataType]
) -> tuple[ir.Value, ir.Value]:
    """Return the values and the scales that an operator of TensorRT's gives."""
    values, scale = tape.op_multi_out(name, inputs, attributes=attributes, domain=DOMAIN, num_outputs=2)
    values.type, scale.type = map(ir.TensorType, types)
    return values, scale


def _reshaped(tape: ir.tape.Tape, x: ir.Value, shape: ir.Value, like: ir.Value | None = None) -> ir.Value:
    out = tape.op("Reshape", [x, shape])
    out.type = ir.TensorType(ir.DataType.FLOAT)
    out.shape = None if like is None else like.shape
    return out


def as_float8(values: NDArray[np.float32]) -> NDArray[Any]:
    """Return the same values as E4M3, which has all of them."""
    return values.astype(ml_dtypes.float8_e4m3fn)


def _packed(layer: QuantizedLayer) -> ir.TensorProtocol:
    codes = layer.integers.float().numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(-1)
    return ir.PackedTensor(codes[0::2] | (codes[1::2] << np.uint8(4)), FLOAT4, shape=ir.Shape(layer.layer.shape))
