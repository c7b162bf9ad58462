"""Refuses nodes that TensorRT's parser or builder refuses, crashes on, or misreads, and names the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calib.quantizers.floats import mxfp8, nvfp4
from engines.errors import PtqdError
from ptqd_export.graph.passes.block_floats import FLOAT4, FP4_QUANTIZE, MOST_AXES, MXFP8_DEQUANTIZE, MXFP8_QUANTIZE

INT4_TYPES = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
STORED_TYPES = frozenset({ir.DataType.INT8, FLOAT4}) | INT4_TYPES
BLOCK_SIZES = {FP4_QUANTIZE: nvfp4.BLOCK, MXFP8_QUANTIZE: mxfp8.BLOCK, MXFP8_DEQUANTIZE: mxfp8.BLOCK}
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Check:
    """One thing that TensorRT does not accept.

    Attributes:
        wrong: the problem, for the error message.
        expected: what TensorRT accepts instead.
        found: describes the problem in a node; returns None if the node is fine.
    """

    wrong: str
    expected: str
    found: Callable[[ir.Node], str | None]


def check_tensorrt_graph(path: Path) -> None:
    """Check without TensorRT that TensorRT accepts a graph. TensorRT's own errors name other nodes or end the process.

    Raises:
        PtqdError: TensorRT does not accept one of the nodes.
    """
    for node in ir.traversal.RecursiveGraphIterator(ir.load(path).graph):
        for check in CHECKS:
            found = check.found(node)
            if found is not None:
                raise PtqdError(
                    f"TensorRT does not accept {path.name}: {check.wrong}.",
                    found=f"{found}, node {node.name or node.outputs[0].name} ({node.op_type})",
                    expected=check.expected,
                    mend='build the graph for a TensorRT target: "tensorrt" or "tensorrt-rtx" as target.name',
                )


def _is_quantizer(node: ir.Node) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The content of an initializer or of a Constant node's output; None for other values."""
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor()
    return None if value is None or not value.is_initializer() else value.const_value


def _run_time_scale(node: ir.Node) -> str | None:
    x = _input(node, 0)
    scale = _input(node, 1) if _is_quantizer(node) and x is not None and x.dtype != FLOAT4 else None
    return f"{scale.name} is not stored in the graph" if scale is not None and _constant(scale) is None else None


def _scale_not_positive(node: ir.Node) -> str | None:
    scale = _constant(_input(node, 1)) if _is_quantizer(node) else None
    if scale is None or bool((scale.numpy() > 0).all()):
        return None
    return f"a scale of {float(scale.numpy().min()):g}"


def _zero_point(node: ir.Node) -> str | None:
    value = _input(node, 2) if _is_quantizer(node) else None
    stored = _constant(value)
    if value is not None and stored is None:
        return f"zero point {value.name} is not stored in the graph"
    points = np.zeros(0) if stored is None else stored.numpy()
    return f"zero point {points[points != 0].flat[0]}" if points.any() else None


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """The integer type of a QuantizeLinear's output; None for other nodes."""
    if node.op_type != "QuantizeLinear":
        return None
    zero_point = _input(node, 2)
    written = node.attributes.get_int("output_dtype", 0)
    if zero_point is None:
        return ir.DataType(written) if written else ir.DataType.UINT8  # ONNX's default
    return zero_point.dtype


def _unsigned(node: ir.Node) -> str | None:
    return "uint8 integers" if _quantized_type(node) == ir.DataType.UINT8 else None


def _four_bit_activations(node: ir.Node) -> str | None:
    kind = _quantized_type(node)
    return f"{kind.name} integers" if kind in INT4_TYPES and kind is not None else None


def _wide_integers(node: ir.Node) -> str | None:
    x = _input(node, 0) if node.op_type == "DequantizeLinear" else None
    return f"{x.dtype.name} {x.name}" if x is not None and x.dtype in (ir.DataType.INT32, ir.DataType.INT16) else None


def _four_bit_convolution(node: ir.Node) -> str | None:
    weight = _input(node, 1) if node.op_type in CONVOLUTIONS else None
    dequantize = None if weight is None else weight.producer()
    stored = _input(dequantize, 0) if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None
    return f"weight {stored.name} in {stored.dtype.name}" if stored is not None and stored.dtype in INT4_TYPES else None


def _integers_elsewhere(node: ir.Node) -> str | None:
    if _is_quantizer(node):
        return None
    stored = (value for value in node.inputs if value is not None and value.is_initializer())
    return next((f"{value.name} in {value.dtype.name}" for value in stored if value.dtype in STORED_TYPES), None)


def _four_bit_cast(node: ir.Node) -> str | None:
    if node.op_type != "Cast":
        return None
    ends = [_input(node, 0), *node.outputs]
    kinds = [value.dtype for value in ends if value is not None] + [ir.DataType(node.attributes["to"].as_int())]
    return next((f"a Cast of {kind.name}" for kind in kinds if kind in INT4_TYPES), None)


def _many_axes(node: ir.Node) -> str | None:
    x = _input(node, 0) if node.op_type in (FP4_QUANTIZE, MXFP8_QUANTIZE) else None
    return None if x is None or x.shape is None or len(x.shape) <= MOST_AXES else f"a tensor of {len(x.shape)} axes"


def _block_size(node: ir.Node) -> str | None:
    if node.op_type not in BLOCK_SIZES:
        return None
    size = node.attributes.get_int("block_size", 0)
    return None if size == BLOCK_SIZES[node.op_type] else f"blocks of {size}"


def _narrow_fp4(node: ir.Node) -> str | None:
    x, scale = _input(node, 0), _input(node, 1)
    if node.op_type != "DequantizeLinear" or x is None or x.dtype != FLOAT4 or scale is None or scale.dtype in (None, ir.DataType.FLOAT):
        return None
    return f"a scale in {scale.dtype.name}" if scale.dtype is not None else None


def _cast_mxfp8(node: ir.Node) -> str | None:
    if node.op_type != MXFP8_DEQUANTIZE:
        return None
    return next((f"a Cast of {node.outputs[0].name}" for use in node.outputs[0].uses() if use.node.op_type == "Cast"), None)


CHECKS = (
    Check("it quantizes only matrices, and stacks of them, in blocks", "a Reshape to 2 axes in front", _many_axes),
    Check("it has no such blocks", "blocks of 16 (NVFP4) or 32 (MXFP8)", _block_size),
    Check("it takes 4-bit floats only with float32 scales", "a Cast behind DequantizeLinear", _narrow_fp4),
    Check("its builder crashes on a Cast of MXFP8 values", "the type as output_dtype of the operator", _cast_mxfp8),
    Check("its builder crashes on a scale that is only known at run time", "scales stored in the graph", _run_time_scale),
    Check("a scale is not positive", "scales above 0", _scale_not_positive),
    Check("it supports only symmetric quantizers", "zero points of 0", _zero_point),
    Check("it reads unsigned integers as signed ones", "int8 integers, the type of the zero point", _unsigned),
    Check("it does not support 4-bit activations", "a Clip to the 4-bit range, and int8 integers", _four_bit_activations),
    Check("it does not support integer biases", "a float bias; DequantizeLinear only of int8 or int4", _wide_integers),
    Check("it does not support 4-bit weights of convolutions", "the integers stored as an int8 weight", _four_bit_convolution),
    Check("it does not support a Cast of 4-bit integers", "DequantizeLinear of the 4-bit integers themselves", _four_bit_cast),
    Check("it accepts stored integers only as inputs of DequantizeLinear", "DequantizeLinear", _integers_elsewhere),
)
