"""bfloat16 in float32 kernels: every result rounded, bit for bit as numpy rounds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.passes.rounded_float32 import ToRoundedFloat32

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

NETWORK = """
    g (float[N,4] sample, float[N] timestep) => (float[N,4] out)
    <float[4,4] weight = {0.11, -0.7, 0.3, 0.9, 0.5, 0.21, -0.31, 0.77, 1.3, -1.1, 0.6, 0.05, -0.33, 0.44, 0.123, 0.9},
     float[4] bias = {0.1, 0.2, -0.3, 0.4}, float scale = {0.03137}, int8 zero = {0}>
    {
        q = QuantizeLinear (sample, scale, zero) dq = DequantizeLinear (q, scale, zero)
        batch = Shape <start = 0, end = 1> (sample) ones = ConstantOfShape <value = float[1] {1.01}> (batch) row = Unsqueeze (ones, batch1)
        a = MatMul (dq, weight) b = Add (a, bias) c = Relu (b) d = Mul (c, row) out = Sub (d, sample)
    }""".replace("int8 zero = {0}>", "int8 zero = {0}, int64[1] batch1 = {1}>")


def rounded(values: Array) -> Array:
    """To bfloat16, nearest and ties to even."""
    return np.asarray(values).astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.fixture
def narrow(parse_graph: Callable[[str], ir.Model]) -> ir.Model:
    model = parse_graph(NETWORK)
    ir.passes.Sequential(ir.passes.common.ShapeInferencePass(), ToHalfPrecision("bf16"), ir.passes.common.RemoveUnusedNodesPass())(model)
    return model


def test_bfloat16_graph_is_standard_onnx(narrow: ir.Model) -> None:
    proto = ir.to_proto(narrow)
    onnx.checker.check_model(proto, full_check=True)
    assert narrow.opset_imports[""] == 22
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert (kinds["weight.half"], kinds["scale.half"], kinds["zero"]) == (TensorProto.BFLOAT16, TensorProto.BFLOAT16, TensorProto.INT8)
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)] == [TensorProto.FLOAT] * 3


def test_stand_in_gives_what_bfloat16_gives(narrow: ir.Model, run_graph: Callable[..., Array]) -> None:
    weight, bias = (rounded(narrow.graph.initializers[f"{name}.half"].const_value.numpy()) for name in ("weight", "bias"))  # type: ignore[union-attr]  # constants all
    sample = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    x, scale = rounded(sample), rounded(np.array(0.03137))
    dq = rounded(np.clip(np.rint(x / scale), -128, 127).astype(np.float32) * scale)
    c = np.maximum(rounded(rounded((dq.astype(np.float64) @ weight.astype(np.float64)).astype(np.float32)) + bias), 0)
    expected = rounded(rounded(c * rounded(np.array(1.01))) - x)
    assert ToRoundedFloat32()(narrow).modified
    found = run_graph(narrow, {"sample": sample, "timestep": np.zeros(50, np.float32)})
    assert (found != expected).mean() < 0.01  # a product at a tie, summed in another order
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_graph_without_bfloat16_is_left_alone(parse_graph: Callable[[str], ir.Model]) -> None:
    model = parse_graph(NETWORK)
    assert not ToRoundedFloat32()(model).modified
