"""Named constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ptqd_export.graph.passes.quantize_dequantize import pack_int4
from ptqd_export.graph.reading.constants import constant

Parse = Callable[[str], ir.Model]


def _model(parse: Parse) -> ir.Model:
    return parse("g (float[N,2] x) => (float[N,2] out) { out = Relu (x) }")


def test_constant_is_made_once(parse_graph: Parse) -> None:
    graph = _model(parse_graph).graph
    first = constant(graph, "scale", np.array([1.0, 2.0], np.float32))
    assert constant(graph, "scale", np.array([1.0, 2.0], np.float32)) is first
    assert (first.dtype, first.shape) == (ir.DataType.FLOAT, ir.Shape([2]))
    assert first.is_initializer()


def test_scalars_have_no_axes(parse_graph: Parse) -> None:
    value = constant(_model(parse_graph).graph, "zero", np.asarray(3, np.uint8))
    assert (value.dtype, value.shape) == (ir.DataType.UINT8, ir.Shape([]))


def test_packed_integers_are_stored_two_a_byte(parse_graph: Parse, tmp_path: Path) -> None:
    model = _model(parse_graph)
    integers = np.array([[1, -1, 7], [-8, 0, 3]], np.int8)
    value = constant(model.graph, "w", ir.PackedTensor(pack_int4(integers), ir.DataType.INT4, shape=ir.Shape([2, 3])))
    assert (value.dtype, value.shape) == (ir.DataType.INT4, ir.Shape([2, 3]))
    ir.save(model, tmp_path / "m.onnx")
    (stored,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert (stored.data_type, list(stored.dims)) == (onnx.TensorProto.INT4, [2, 3])
    assert len(stored.raw_data) == 3
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored).astype(np.int8), integers)
