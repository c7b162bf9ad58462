"""Rewrites a graph with floats in blocks for runtimes without them, so that it computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.quantizers.floats import mxfp8, nvfp4
from calib.quantizers.quantizers import FLOAT8_LARGEST
from ptqd_export.graph.passes.block_floats import FLOAT4, FLOAT8, FP4_QUANTIZE, MXFP8_DEQUANTIZE, MXFP8_QUANTIZE
from ptqd_export.graph.reading.constants import computed, constant

FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8


class ToDecodedFloats(ir.passes.InPlacePass):
    """Replaces 4-bit floats and TensorRT's operators for floats in blocks with standard operators, by these rules:

    1. a 4-bit float is stored as the integer of twice its value, from -12 to 12, and its DequantizeLinear takes half of the scale;
    2. blocks of an activation are divided by their scales, and the quotients rounded to the values of the format, ties to even. Scales are
       found as the format says, in float32;
    3. scales that are powers of two are looked up in a table of all of them.

    Every step is exact or rounds as `calib.quantizers.floats` does. Ensures: the same inputs, outputs and layer names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        modified = [_rewrite(_Writer(graph, node), node) for node in list(graph)]
        for value in [*graph.initializers.values(), *(out for node in graph for out in node.outputs)]:
            if value.dtype == FLOAT4:
                value.const_value = None if value.const_value is None else _doubled(value.const_value)
                value.type = ir.TensorType(INT8)
        return ir.passes.PassResult(model, any(modified))


def _doubled(tensor: ir.TensorProtocol) -> ir.TensorProtocol:  # rule 1
    return computed(lambda: ir.tensor((2 * tensor.numpy().astype(np.float32)).astype(np.int8)), INT8, tensor.shape.numpy())


def _rewrite(writer: _Writer, node: ir.Node) -> bool:
    x = node.inputs[0] if node.inputs else None
    if node.op_type == FP4_QUANTIZE:
        writer.replace(*_nvfp4(writer, *node.inputs))
    elif node.op_type == MXFP8_QUANTIZE:
        writer.replace(*_mxfp8(writer, x))
    elif node.op_type == MXFP8_DEQUANTIZE:
        out = writer.op("DequantizeLinear", x, _powers(writer, node.inputs[1]), axis=-1, block_size=mxfp8.BLOCK)
        kind = node.outputs[0].dtype
        writer.replace(out if kind in (None, FLOAT) else writer.op("Cast", out, to=kind))
    elif node.op_type == "DequantizeLinear" and x is not None and x.dtype == FLOAT4:
        half = writer.op("Mul", node.inputs[1], writer.number("half", 0.5))
        writer.replace(writer.op("DequantizeLinear", x, half, axis=-1, block_size=nvfp4.BLOCK))
    else:
        return False
    return True


def _nvfp4(writer: _Writer, x: ir.Value | None, whole: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """Return twice the values of the codes as int8, and the scales in E4M3; see `Nvfp4ActivationQuantizer.fake`."""
    wide = writer.op("Cast", x, to=FLOAT)
    blocks, largest = _blocks(writer, wide, nvfp4.BLOCK)
    least = writer.op("Mul", whole, writer.number("largest_fp4", nvfp4.LARGEST))
    zero = writer.constant("zero_fp8", np.zeros((), np.uint8).view(FLOAT8.numpy()))
    scale = writer.op("QuantizeLinear", largest, least, zero)
    used = writer.op("DequantizeLinear", scale, whole)
    safe = writer.op("Where", writer.op("Greater", used, writer.number("zero", 0.0)), used, writer.number("infinity", np.inf))
    codes = _doubled_e2m1(writer, writer.op("Div", blocks, _beside(writer, safe)))
    return writer.op("Cast", writer.op("Reshape", codes, writer.op("Shape", wide)), to=INT8), scale


def _doubled_e2m1(writer: _Writer, x: ir.Value) -> ir.Value:
    """Twice the nearest E2M1 values: multiples of 1 below 4, of 2 below 8, and of 4 up to 12."""
    size = writer.op("Min", writer.op("Abs", writer.op("Mul", x, writer.number("two", 2.0))), writer.number("twelve", 12.0))
    coarse = writer.op("Where", writer.op("Less", size, writer.number("eight", 8.0)), writer.number("two", 2.0), writer.number("four", 4.0))
    step = writer.op("Where", writer.op("Less", size, writer.number("four", 4.0)), writer.number("one", 1.0), coarse)
    return writer.op("Mul", writer.op("Mul", writer.op("Round", writer.op("Div", size, step)), step), writer.op("Sign", x))


def _mxfp8(writer: _Writer, x: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """Return the values in E4M3, and the stored scales as uint8; see `Mxfp8ActivationQuantizer.fake`."""
    wide = writer.op("Cast", x, to=FLOAT)
    blocks, largest = _blocks(writer, wide, mxfp8.BLOCK)
    ratio = writer.op("Div", largest, writer.number("largest_fp8", FLOAT8_LARGEST))
    exponent = _rounded_up(writer, ratio)
    quotient = writer.op("Div", blocks, _beside(writer, _powers(writer, exponent)))
    one, zero = writer.number("one", 1.0), writer.constant("zero_fp8", np.zeros((), np.uint8).view(FLOAT8.numpy()))
    values = writer.op("QuantizeLinear", writer.op("Reshape", quotient, writer.op("Shape", wide)), one, zero)
    return values, writer.op("Cast", exponent, to=ir.DataType.UINT8)


def _rounded_up(writer: _Writer, ratio: ir.Value) -> ir.Value:
    """The stored exponents, int64, of the smallest powers of two that are not below the ratios. The logarithm may be off by one."""
    tiny, bias = writer.number("tiny", 2.0**-126), writer.number("bias", float(mxfp8.BIAS))
    log = writer.op("Mul", writer.op("Log", writer.op("Max", ratio, tiny)), writer.number("log2e", 1 / np.log(2)))
    near = _within(writer, writer.op("Cast", writer.op("Add", writer.op("Ceil", log), bias), to=ir.DataType.INT64))
    one = writer.constant("one_int", np.ones((), np.int64))
    low = _within(writer, writer.op("Sub", near, one))
    down = writer.op("Where", writer.op("Less", _powers(writer, low), ratio), near, low)
    high = _within(writer, writer.op("Add", down, one))
    return writer.op("Where", writer.op("Less", _powers(writer, down), ratio), high, down)


def _within(writer: _Writer, exponent: ir.Value) -> ir.Value:
    return writer.op("Clip", exponent, *(writer.constant(f"exponent.{end}", np.array(end, np.int64)) for end in mxfp8.EXPONENTS))


def _powers(writer: _Writer, exponent: ir.Value | None) -> ir.Value:  # rule 3
    table = writer.constant("powers", np.ldexp(1.0, np.arange(mxfp8.EXPONENTS[1] + 1) - mxfp8.BIAS).astype(np.float32))
    return writer.op("Gather", table, writer.op("Cast", exponent, to=ir.DataType.INT64))


def _blocks(writer: _Writer, x: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
    """The blocks of the last axis, [..., blocks, size], and their largest magnitudes, [..., blocks]."""
    leading = writer.op("Shape", x, end=-1)
    shape = writer.op("Concat", leading, writer.constant(f"blocks.{size}", np.array([-1, size], np.int64)), axis=0)
    blocks = writer.op("Reshape", x, shape)
    return blocks, writer.op("ReduceMax", writer.op("Abs", blocks), _last_axis(writer), keepdims=0)


def _beside(writer: _Writer, scale: ir.Value) -> ir.Value:
    """Scales of blocks in a shape that broadcasts to the blocks."""
    return writer.op("Unsqueeze", scale, _last_axis(writer))


def _last_axis(writer: _Writer) -> ir.Value:
    return writer.constant("last_axis", np.array([-1], np.int64))


class _Writer:
    """Writes the nodes that replace a node."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node, self._tape = graph, node, ir.tape.Tape()

    def op(self, name: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        return self._tape.op(name, inputs, attributes=attributes)

    def number(self, name: str, value: float) -> ir.Value:
        return self.constant(name, np.asarray(value, np.float32))

    def constant(self, name: str, value: NDArray[Any]) -> ir.Value:
        return constant(self._graph, f"decoded.{name}", value)

    def replace(self, *outputs: ir.Value) -> None:
        """Let the readers of the node read these values instead, and remove it."""
        for old, new in zip(self._node.outputs, outputs, strict=True):
            new.shape, new.type, new.name = old.shape, old.type, old.name
            old.name = None
            old.replace_all_uses_with(new)
        self._graph.insert_before(self._node, self._tape.nodes)
        self._graph.remove(self._node, safe=True)
