"""Converts the float part of a graph to half precision: strongly typed runtimes compute only in the types that a graph names."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from calib.quantizers.rules.placement import HighPrecision
from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.passes.block_floats import MXFP8_DEQUANTIZE, is_fp4
from ptqd_export.graph.reading.constants import computed, constant

HALVES: Mapping[HighPrecision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

BFLOAT16_OPSET = 22
"""First opset whose convolutions accept bfloat16. For the operators of these networks, the opset only added types."""

COMPUTES = frozenset({"Conv", "Gemm", "MatMul", "QuantizeLinear"})
"""Operators where the conditions enter the network. Everything before only prepares the conditions."""

FLOAT32_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (2,)}
"""Inputs that are float32 by definition, by operator (the scales of Resize)."""


class ToHalfPrecision(ir.passes.InPlacePass):
    """Converts a graph to float16 or bfloat16, by these rules:

    1. inputs and outputs keep their types, so that every engine of a bundle takes the same inputs: a Cast follows each float input that
       half-precision nodes read, and another one precedes the output;
    2. values computed from the timestep and other conditions stay in float32 until a weighted layer reads them: the sine of a timestep near
       1000 has no correct digit left in half precision;
    3. everything else computes in half precision: weights, biases, norms (which still sum in float32, as `stash_type` says), and the scales
       of QuantizeLinear and DequantizeLinear, whose types determine the types of their results. The scales and results of 4-bit floats
       stay in float32, the only type that TensorRT takes there.

    Requires: float32, topological order, quantizers already inserted, known types of the values that rule 2 keeps. Ensures: the same inputs
    and outputs.
    """

    def __init__(self, high_precision: HighPrecision = "fp16") -> None:
        super().__init__()
        self._half = HALVES[high_precision]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._half == ir.DataType.BFLOAT16:
            model.opset_imports[""] = max(BFLOAT16_OPSET, model.opset_imports[""])
        kept = _kept_in_float32(model.graph) | {node for node in model.graph if is_fp4(node)}
        writer = _CastWriter(model.graph, kept, self._half)
        for node in [node for node in model.graph if node not in kept]:
            writer.convert(node)
        writer.restore_outputs()
        return ir.passes.PassResult(model, True)


def _kept_in_float32(graph: ir.Graph) -> set[ir.Node]:
    """Rule 2: nodes that depend on an input other than the state, but neither on the state nor on a weighted layer."""
    early = {value for value in graph.inputs if value.name != STATE}
    late = {value for value in graph.inputs if value.name == STATE}
    kept = set()
    for node in graph:
        if node.op_type in COMPUTES or not late.isdisjoint(node.inputs):
            late.update(node.outputs if node.op_type != "Shape" else ())
        elif not early.isdisjoint(node.inputs):
            early.update(node.outputs)
            kept.add(node)
    for node in reversed(graph):  # nodes that depend only on constants follow their readers
        if late.isdisjoint(node.outputs) and any(use.node in kept for value in node.outputs for use in value.uses()):
            kept.add(node)
    return kept


class _CastWriter:
    def __init__(self, graph: ir.Graph, kept: set[ir.Node], half: ir.DataType) -> None:
        self._graph = graph
        self._half = half
        self._kept = kept
        self._casts: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node) -> None:  # rule 3
        for index, value in enumerate(node.inputs):
            assert value is None or value.dtype is not None or value.producer() not in self._kept, value.name
            if value is not None and value.dtype == ir.DataType.FLOAT and index not in FLOAT32_INPUTS.get(node.op_type, ()):
                node.replace_input_with(index, self._converted(value))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(self._half)  # values may share a type object, so none is changed in place
        self._convert_attributes(node)

    def _converted(self, value: ir.Value) -> ir.Value:
        if value.is_initializer():
            assert value.const_value is not None
            assert value.name is not None
            return constant(self._graph, f"{value.name}.half", self._narrowed(value.const_value))
        producer = value.producer()
        if producer is not None and producer not in self._kept:
            return value
        if value not in self._casts:
            self._casts[value] = self._cast(value, producer)
        return self._casts[value]

    def _cast(self, value: ir.Value, producer: ir.Node | None) -> ir.Value:  # rule 1
        node = ir.node("Cast", [value], attributes={"to": self._half})
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(self._half)
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return node.outputs[0]

    def restore_outputs(self) -> None:  # rule 1
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == self._half:
                node = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
                (out,) = node.outputs
                out.shape, out.type, out.name, value.name = value.shape, ir.TensorType(ir.DataType.FLOAT), value.name, f"{value.name}.half"
                self._graph.append(node)
                self._graph.outputs[index] = out

    def _convert_attributes(self, node: ir.Node) -> None:
        """Convert the types named in a node's attributes."""
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", self._half)
        if node.op_type == MXFP8_DEQUANTIZE:
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", self._half)
        if node.op_type == "ConstantOfShape":
            filled = node.attributes["value"].as_tensor() if "value" in node.attributes else ir.tensor(np.zeros(1, np.float32))
            if filled.dtype == ir.DataType.FLOAT:
                node.attributes["value"] = ir.AttrTensor("value", self._narrowed(filled))

    def _narrowed(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Round to the nearest values. Values beyond the range become the largest one, which preserves the meaning of attention masks."""
        dtype = self._half.numpy()
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]  # ml_dtypes has type hints only for its dtypes
        return computed(
            lambda: ir.tensor(np.asarray(np.clip(tensor.numpy(), -largest, largest)).astype(dtype)), self._half, tensor.shape.numpy()
        )
