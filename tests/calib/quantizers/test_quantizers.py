"""Quantizers against literal integers, and against ONNX's own reference implementation of the same arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer, weight_range


@pytest.mark.parametrize(
    ("bits", "low", "high"), [(2, -2, 1), (3, -4, 3), (4, -8, 7), (5, -16, 15), (6, -32, 31), (7, -64, 63), (8, -127, 127)]
)
def test_weight_integers_end_where_their_bits_end(bits: int, low: int, high: int) -> None:
    assert weight_range(bits) == (low, high)
    quantizer = WeightQuantizer(bits, torch.tensor([1.0]))
    assert quantizer.integers(torch.tensor([[-1e6, 1e6]])).tolist() == [[low, high]]


def test_each_output_channel_has_its_scale_and_ties_go_to_even() -> None:
    quantizer = WeightQuantizer(4, torch.tensor([0.5, 2.0]))
    weight = torch.tensor([[0.25, 0.75, 1.25, -0.25, -0.75, 3.6], [-20.0, 20.0, 1.0, 3.0, 5.0, -1.0]])
    integers = quantizer.integers(weight)
    assert integers.dtype == torch.int8
    assert integers.tolist() == [[0, 2, 2, 0, -2, 7], [-8, 7, 0, 2, 2, 0]]
    assert quantizer.dequantize(integers).tolist() == [[0.0, 1.0, 1.0, 0.0, -1.0, 3.5], [-16.0, 14.0, 0.0, 4.0, 4.0, 0.0]]


def test_scales_belong_to_the_first_axis_of_a_convolution() -> None:
    quantizer = WeightQuantizer(8, torch.tensor([1.0, 10.0]))
    weight = torch.full((2, 3, 2, 2), 50.0)
    integers = quantizer.integers(weight)
    assert integers[0].unique().tolist() == [50]
    assert integers[1].unique().tolist() == [5]
    torch.testing.assert_close(quantizer.dequantize(integers), weight)


def test_weights_can_be_dequantized_in_double_precision() -> None:
    quantizer = WeightQuantizer(8, torch.tensor([0.1]))
    value = quantizer.dequantize(torch.tensor([[3]], dtype=torch.int8), torch.float64)
    assert value.dtype == torch.float64
    assert value.item() == 3 * float(np.float32(0.1))


def test_at_least_raises_only_the_scales_below_the_floor() -> None:
    quantizer = WeightQuantizer(4, torch.tensor([1e-9, 0.5]))
    raised = quantizer.at_least(torch.tensor([1e-3, 1e-3]))
    torch.testing.assert_close(raised.scale, torch.tensor([1e-3, 0.5]))
    assert raised.bits == 4
    torch.testing.assert_close(quantizer.scale, torch.tensor([1e-9, 0.5]))


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"), [(8, False, 0, 255), (8, True, -128, 127), (4, False, 0, 15), (4, True, -8, 7), (2, False, 0, 3)]
)
def test_activation_integers_end_where_their_bits_end(bits: int, signed: bool, low: int, high: int) -> None:
    quantizer = ActivationQuantizer(bits, signed, scale=1.0, zero_point=(low + high + 1) // 2)
    assert (quantizer.low, quantizer.high) == (low, high)
    ends = quantizer.fake(torch.tensor([-1e9, 1e9]))
    assert ends.tolist() == [low - quantizer.zero_point, high - quantizer.zero_point]


@pytest.mark.parametrize(
    ("signed", "zero_point"), [(False, 0), (False, 128), (False, 77), (False, 255), (True, 0), (True, -128), (True, 31)]
)
def test_eight_bits_are_the_arithmetic_of_quantizelinear(signed: bool, zero_point: int) -> None:
    scale = float(np.float32(0.0371))
    x = np.concatenate([np.random.default_rng(0).normal(0, 5, 4000), scale * (np.arange(-400, 400) + 0.5), [0.0]]).astype(np.float32)
    found = ActivationQuantizer(8, signed, scale, zero_point).fake(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, _quantize_dequantize(x, scale, zero_point, np.int8 if signed else np.uint8))


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_fewer_bits_are_evenly_spaced_values_and_the_nearest_is_taken(bits: int) -> None:
    quantizer = ActivationQuantizer(bits, signed=False, scale=0.25, zero_point=1)
    levels = 0.25 * (np.arange(2**bits) - 1.0)
    x = np.random.default_rng(1).uniform(levels[0] - 1, levels[-1] + 1, 2000)
    nearest = levels[np.abs(x[:, None] - levels).argmin(axis=1)]
    np.testing.assert_array_equal(quantizer.fake(torch.from_numpy(x)).numpy(), nearest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_arithmetic_is_done_in_the_dtype_of_the_values(dtype: torch.dtype) -> None:
    scale = float(np.float32(0.1))
    out = ActivationQuantizer(8, signed=False, scale=scale, zero_point=128).fake(torch.tensor([0.3], dtype=dtype))
    assert out.dtype == dtype
    assert out.item() == (3 * scale if dtype == torch.float64 else np.float32(3) * np.float32(0.1))


def _quantize_dequantize(x: NDArray[np.float32], scale: float, zero_point: int, kind: type[np.int8 | np.uint8]) -> Any:
    """What ONNX's specification says, by its reference implementation."""
    x_info, y_info = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy")
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    scale_value, zero = (np.asarray(scale, np.float32), np.asarray(zero_point, kind))
    constants = [onnx.numpy_helper.from_array(scale_value, "s"), onnx.numpy_helper.from_array(zero, "z")]
    graph = helper.make_graph(nodes, "qdq", [x_info], [y_info], constants)
    (y,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])).run(None, {"x": x})
    return y
