"""Float16 written into graphs of this test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from ptqd_export.graph.passes.half_precision import ToHalfPrecision

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

NETWORK = """
    g (float[N,1,4,4] sample, float[N] timestep, int64[N] label) => (float[N,1,8,8] out)
    <float[2] frequencies = {1.0, 0.125}, float[2,4] weight = {0.1, 0.2, -0.3, 0.4, 0.5, -0.6, 0.7, 0.8}, float[4] bias = {1, 2, 3, 4},
     float[3,2] table = {0.5, 1.5, 2.5, 3.5, 4.5, 5.5}, float[1,4] row = {1, 1, 1, 1}, int64[1] last = {-1}, int64[1] first = {0},
     float[1,1,3,3] kernel = {0.1, -0.2, 0.3, 0.1, 0.2, 0.1, -0.1, 0.2, 0.1}, float[4] scales = {1, 1, 2, 2}, float mask = {-3e38},
     float scale = {0.03125}, int8 zero = {0}>
    {
        batch = Shape <start = 0, end = 1> (sample) ones = ConstantOfShape <value = float[1] {1.0}> (batch)
        t = Mul (timestep, ones) column = Unsqueeze (t, last) angles = Mul (column, frequencies) waves = Sin (angles)
        known = Gather (table, label) both = Add (waves, known)
        embedded = Gemm (both, weight, bias) drawn = Mul (embedded, row) sums = ReduceSum (drawn, last) plane = Unsqueeze (sums, last)
        plane3 = Unsqueeze (plane, last)
        q = QuantizeLinear (sample, scale, zero) dq = DequantizeLinear (q, scale, zero)
        h = Conv <pads = [1, 1, 1, 1]> (dq, kernel) shifted = Add (h, plane3) kept = Max (shifted, mask)
        wide = Cast <to = 1> (kept)
        out = Resize <mode = "nearest"> (wide, , scales)
    }"""

Run = Callable[..., "Array"]


@pytest.fixture
def feeds() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((3, 1, 4, 4), dtype=np.float32)
    return {"sample": sample, "timestep": np.array([0, 500.5, 998.75], np.float32), "label": np.array([0, 2, 1])}


@pytest.fixture
def converted(parse_graph: Callable[[str], ir.Model], tmp_path: Path) -> onnx.ModelProto:
    model = parse_graph(NETWORK)
    ir.passes.Sequential(ir.passes.common.ShapeInferencePass(), ToHalfPrecision(), ir.passes.common.RemoveUnusedNodesPass())(model)
    ir.save(model, tmp_path / "m.onnx")
    return onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx"), strict_mode=True)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return stored | {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}


def test_inputs_and_output_keep_their_types(converted: onnx.ModelProto) -> None:
    onnx.checker.check_model(converted, full_check=True)
    types = _types(converted)
    float32 = {"sample", "timestep", "out"}
    assert [types[name] for name in ("sample", "timestep", "label", "out")] == [
        TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT,
    ]  # fmt: skip
    assert float32 <= set(types)


def test_what_computes_is_float16_and_what_prepares_conditions_is_float32(converted: onnx.ModelProto) -> None:
    types = _types(converted)
    prepared = ("ones", "t", "column", "angles", "waves", "known", "both", "frequencies", "table")
    computed = ("embedded", "drawn", "sums", "plane3", "dq", "h", "shifted", "kept", "wide", "weight.half", "kernel.half", "scale.half")
    assert {types[name] for name in prepared} == {TensorProto.FLOAT}
    assert {types[name] for name in computed} == {TensorProto.FLOAT16}
    assert (types["q"], types["scales"]) == (TensorProto.INT8, TensorProto.FLOAT)
    assert not {"weight", "kernel", "scale", "mask"} & set(types)


def test_casts_stand_at_the_ends_alone(converted: onnx.ModelProto) -> None:
    casts = {(node.input[0], node.attribute[0].i) for node in converted.graph.node if node.op_type == "Cast"}
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    assert casts == {("sample", half), ("both", half), ("kept", half), ("out.half", single)}  # the third is the network's own


def test_values_beyond_the_range_become_its_largest(converted: onnx.ModelProto) -> None:
    (mask,) = (tensor for tensor in converted.graph.initializer if tensor.name == "mask.half")
    assert onnx.numpy_helper.to_array(mask) == -65504


def test_result_is_that_of_float32_up_to_half_precision(
    parse_graph: Callable[[str], ir.Model], run_graph: Run, feeds: dict[str, Array]
) -> None:
    model = parse_graph(NETWORK)
    expected = run_graph(model, feeds)
    ir.passes.common.ShapeInferencePass()(model)
    assert ToHalfPrecision()(model).modified
    found = run_graph(model, feeds)
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert 0 < difference < 2e-3 * np.abs(expected).max()
