"""Writes the quantizers of one precision into a full-precision graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.quantizers.floats.mxfp8 import Mxfp8ActivationQuantizer
from calib.quantizers.floats.nvfp4 import Nvfp4ActivationQuantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, Float8ActivationQuantizer
from calib.quantizers.rules.placement import CONTAINER_BITS, INT4_BITS, Placement
from calib.quantizers.rules.precision import BLOCK_FORMATS
from engines.backends.onnxruntime.weight_shift import SHIFT_BYTES, WEIGHT_SHIFT
from ptqd_export.graph.passes.block_floats import block_activation, block_weight, declare
from ptqd_export.graph.passes.low_rank_branches import AddLowRankBranches
from ptqd_export.graph.reading.constants import computed, constant
from ptqd_export.graph.reading.graph_layers import weighted_nodes

FLOAT8: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
INT4_BLOCKS = (128, 64, 32, 16)
"""Numbers of input channels that can share a scale, best first. TensorRT has kernels for these block sizes."""


class InsertQuantization(ir.passes.InPlacePass):
    """Puts Q/DQ pairs around the given layers, by these rules:

    1. the weight becomes an integer initializer followed by DequantizeLinear, with one scale per output channel. The placement may change
       this: weights of at most 4 bits are packed as INT4, either followed by a Cast to INT8 that the runtime folds when it loads the graph,
       or in blocks of input channels, with scales of their own or the scale of their output channel; the weight of a float layer is
       followed by Cast and Mul instead; a constant 0 is subtracted from the integers and their zero points. A runtime may replace this
       constant when it loads the graph, which gives the same weights in other integers;
    2. an input with a quantizer gets QuantizeLinear and DequantizeLinear; consumers of the same value share one pair;
    3. an activation with fewer bits than its container is first clipped to its range;
    4. an output with a quantizer gets its own pair;
    5. if the precision says so, weight and activations are 8-bit floats instead of integers, or floats in blocks of input channels, see
       `ptqd_export.graph.passes.block_floats`;
    6. the bias of an integer kernel becomes int32 followed by DequantizeLinear; its scale is the input scale times the weight scale;
    7. a branch beside a layer reads the input in float, see `ptqd_export.graph.passes.low_rank_branches`.

    Requires: initializers named by `ParameterNames` and `TransposedWeights`. Ensures: the graph computes what
    `calib.quantizers.oracle.fake_quantized` computes, up to the order of float32 sums.
    """

    def __init__(self, layers: Sequence[QuantizedLayer], placement: Placement) -> None:
        super().__init__()
        self._layers = layers
        self._placement = placement

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if any(BLOCK_FORMATS.keys() & {layer.rule.form, layer.rule.activation_form} for layer in self._layers):
            declare(model)
        AddLowRankBranches({layer.layer.name: layer.branch for layer in self._layers if layer.branch is not None})(model)  # rule 7
        nodes = weighted_nodes(model.graph)
        writer = _PairWriter(model.graph, self._placement)
        for layer in self._layers:
            for node in nodes[layer.layer.name]:
                writer.quantize(node, layer)
        return ir.passes.PassResult(model, bool(self._layers))


class _PairWriter:
    def __init__(self, graph: ir.Graph, placement: Placement) -> None:
        self._graph = graph
        self._placement = placement
        self._pairs: dict[tuple[ir.Value, ActivationQuantizer], ir.Value] = {}

    def quantize(self, node: ir.Node, layer: QuantizedLayer) -> None:
        x = node.inputs[0]
        assert x is not None
        node.replace_input_with(1, self._weight(node, layer))
        if layer.input is not None:
            node.replace_input_with(0, self._input(x, layer.input))
        if layer.rule.bias == "int32" and layer.bias is not None:
            node.replace_input_with(2, self._bias(node, layer))
        if layer.output is not None:
            self._output(node, layer.output)

    def _weight(self, node: ir.Node, layer: QuantizedLayer) -> ir.Value:  # rule 1
        axis = 1 if node.op_type == "MatMul" else 0
        if layer.rule.form in BLOCK_FORMATS:
            tape = ir.tape.Tape()
            out = block_weight(self._graph, tape, layer, transposed=axis == 1)
            self._graph.insert_before(node, tape.nodes)
            return out
        name, integers, form = f"{layer.layer.name}.weight", _as_array(layer.integers), self._form(layer)
        stored = constant(self._graph, f"{name}.int", _stored(integers.T if axis else integers, packed=form != "int8"))
        tape = ir.tape.Tape()
        wide = tape.op("Cast", [stored], attributes={"to": ir.DataType.INT8}) if form == "cast" else stored
        if form == "blocks":
            out = self._blocks(tape, wide, layer, axis)
        elif layer.input is None and self._placement.weight_only == "multiply":
            out = self._multiplied(tape, wide, layer, axis)
        else:
            scale = constant(self._graph, f"{name}.scale", layer.weight.scale.numpy())
            zeros = constant(self._graph, f"{name}.zero_point", np.zeros(len(integers), integers.dtype))
            if self._placement.ops[layer.layer.op].shifted:
                wide, zeros = (tape.op("Sub", [value, self._shift()]) for value in (wide, zeros))
            out = tape.op("DequantizeLinear", [wide, scale, zeros], attributes={"axis": axis})
        self._graph.insert_before(node, tape.nodes)
        return out

    def _shift(self) -> ir.Value:
        """The value that is subtracted from weights and zero points. It is one element of a constant, and all layers share its node."""
        stored = constant(self._graph, WEIGHT_SHIFT, np.zeros(SHIFT_BYTES, np.int8))
        if not stored.uses():
            tape = ir.tape.Tape()
            tape.op("Gather", [stored, constant(self._graph, f"{WEIGHT_SHIFT}.index", np.zeros((), np.int64))])
            self._graph.insert_before(self._graph[0], tape.nodes)
        (use,) = stored.uses()
        return use.node.outputs[0]

    def _form(self, layer: QuantizedLayer) -> Literal["int8", "cast", "blocks"]:
        """How the integers of a weight are stored. Packed integers that do not divide into blocks are stored as INT8."""
        where = self._placement.ops[layer.layer.op].int4
        packed = where == "always" or (where == "weight_only" and layer.input is None)
        if layer.weight.bits > INT4_BITS or not packed:
            return "int8"
        form = "blocks" if layer.rule.group is not None else self._placement.int4_form
        return "int8" if form == "blocks" and _block_size(layer) is None else form

    def _multiplied(self, tape: ir.tape.Tape, integers: ir.Value, layer: QuantizedLayer, axis: int) -> ir.Value:
        shape = [-1 if dimension == axis else 1 for dimension in range(layer.integers.ndim)]
        along = constant(self._graph, f"{layer.layer.name}.weight.scale", layer.weight.scale.numpy().reshape(shape))
        return tape.op("Mul", [tape.op("Cast", [integers], attributes={"to": ir.DataType.FLOAT}), along])

    def _blocks(self, tape: ir.tape.Tape, integers: ir.Value, layer: QuantizedLayer, axis: int) -> ir.Value:
        """Dequantize blocks of input channels. Without scales of their own, they repeat that of the output channel."""
        size = _block_size(layer)
        assert size is not None
        found = layer.weight.scale.numpy()
        scales = found if layer.rule.group is not None else found[:, None].repeat(layer.layer.shape[1] // size, axis=1)
        scale = constant(self._graph, f"{layer.layer.name}.weight.scale", np.ascontiguousarray(scales.T if axis else scales))
        return tape.op("DequantizeLinear", [integers, scale], attributes={"axis": 1 - axis, "block_size": size})

    def _input(self, x: ir.Value, quantizer: ActivationQuantizer) -> ir.Value:  # rule 2
        if (x, quantizer) not in self._pairs:
            tape = ir.tape.Tape()
            self._pairs[x, quantizer] = self._pair(tape, x, quantizer)
            self._after(x, tape)
        return self._pairs[x, quantizer]

    def _after(self, x: ir.Value, tape: ir.tape.Tape) -> None:
        """Insert right after the producer of `x`, so that every later consumer can share the nodes."""
        producer = x.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], tape.nodes)
        else:
            self._graph.insert_after(producer, tape.nodes)

    def _pair(self, tape: ir.tape.Tape, x: ir.Value, quantizer: ActivationQuantizer) -> ir.Value:
        if isinstance(quantizer, (Nvfp4ActivationQuantizer, Mxfp8ActivationQuantizer)):
            return block_activation(self._graph, tape, x, quantizer)
        kind = _container(quantizer)
        scale = constant(self._graph, f"scale.{quantizer.scale!r}", np.asarray(quantizer.scale, np.float32))
        zero = constant(self._graph, f"zero_point.{kind}.{quantizer.zero_point}", np.asarray(quantizer.zero_point, kind))
        if quantizer.bits < CONTAINER_BITS:  # rule 3
            low, high = (np.float32(end - quantizer.zero_point) * np.float32(quantizer.scale) for end in (quantizer.low, quantizer.high))
            bounds = [constant(self._graph, f"bound.{float(end)!r}", np.asarray(end)) for end in (low, high)]
            x = _like(x, tape.op("Clip", [x, *bounds]))
        return _like(x, tape.op("DequantizeLinear", [tape.op("QuantizeLinear", [x, scale, zero]), scale, zero]))

    def _output(self, node: ir.Node, quantizer: ActivationQuantizer) -> None:  # rule 4
        (out,) = node.outputs
        users = list(out.uses())
        tape = ir.tape.Tape()
        pair = self._pair(tape, out, quantizer)
        for use in users:
            use.node.replace_input_with(use.idx, pair)
        self._graph.insert_after(node, tape.nodes)

    def _bias(self, node: ir.Node, layer: QuantizedLayer) -> ir.Value:  # rule 6
        name = f"{layer.layer.name}.bias"
        integers = constant(self._graph, f"{name}.int", layer.bias_integers().numpy())
        scale = constant(self._graph, f"{name}.scale", layer.bias_scale.numpy())
        tape = ir.tape.Tape()
        out = tape.op("DequantizeLinear", [integers, scale], attributes={"axis": 0})
        self._graph.insert_before(node, tape.nodes)
        return out


def _like(x: ir.Value, out: ir.Value) -> ir.Value:
    out.shape, out.type = x.shape, x.type
    return out


def _container(quantizer: ActivationQuantizer) -> np.dtype[Any]:
    """Type in which quantized activations are stored."""
    if isinstance(quantizer, Float8ActivationQuantizer):
        return FLOAT8
    return np.dtype(np.int8 if quantizer.signed else np.uint8)


def _as_array(stored: Tensor) -> NDArray[Any]:
    """Convert to numpy, whose own types do not include 8-bit floats."""
    return stored.view(torch.uint8).numpy().view(FLOAT8) if stored.dtype == torch.float8_e4m3fn else stored.numpy()


def _stored(integers: NDArray[Any], *, packed: bool) -> ir.TensorProtocol:
    if packed:
        shape = ir.Shape(integers.shape)
        return computed(lambda: ir.PackedTensor(pack_int4(integers), ir.DataType.INT4, shape=shape), ir.DataType.INT4, integers.shape)
    dtype = ir.DataType.from_numpy(integers.dtype)
    return computed(lambda: ir.tensor(np.ascontiguousarray(integers)), dtype, integers.shape)


def _block_size(layer: QuantizedLayer) -> int | None:
    """The size of a linear layer's groups; without groups, the largest block size that divides its input channels, or None."""
    return layer.rule.group or next((size for size in INT4_BLOCKS if layer.layer.shape[1] % size == 0), None)


def pack_int4(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack integers as two's complement nibbles, the first value in the low half of a byte, as ONNX stores INT4."""
    nibbles = integers.reshape(-1).view(np.uint8) & 0x0F
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return np.asarray(nibbles[0::2] | (nibbles[1::2] << np.uint8(4)), np.uint8)
