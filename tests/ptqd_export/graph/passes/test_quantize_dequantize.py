"""Q/DQ written into graphs: integers, scales, and the forms of each target."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calib.quantizers.rules.placement import PLACEMENTS
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization, pack_int4
from tests.ptqd_export.graph.passes.quantized_networks import (
    ORT,
    SHAPES,
    TRT,
    Attention,
    Case,
    Convolutions,
    Flat,
    GraphOf,
    Wide,
    stored_tensor,
)


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _producers(node: ir.Node, index: int) -> list[str]:
    """Operators between a node's input and the network's own node or constant behind it, last first."""
    ops: list[str] = []
    value = node.inputs[index]
    written = ("QuantizeLinear", "DequantizeLinear", "Cast", "Sub", "Mul", "Clip")
    while value is not None and (producer := value.producer()) and producer.op_type in written:
        ops.append(producer.op_type)
        value = producer.inputs[0]
    return ops


# Packing


@pytest.mark.parametrize(
    ("integers", "packed"),
    [([1, -1, 7, -8], [0xF1, 0x87]), ([3], [0x03]), ([-8, 7, -1], [0x78, 0x0F]), ([[1, 2, 3], [4, 5, 6]], [0x21, 0x43, 0x65]), ([], [])],
)
def test_four_bit_integers_are_packed_low_half_first_across_rows(integers: list[int], packed: list[int]) -> None:
    found = pack_int4(np.array(integers, dtype=np.int8))
    assert found.dtype == np.uint8
    assert found.tolist() == packed


def test_onnx_reads_back_every_pair_of_packed_integers() -> None:
    integers = np.array([(a, b) for a in range(-8, 8) for b in range(-8, 8)], dtype=np.int8)
    tensor = onnx.TensorProto(dims=integers.shape, data_type=onnx.TensorProto.INT4, raw_data=pack_int4(integers).tobytes())
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), integers)


# The rules


@pytest.mark.parametrize(
    ("precision", "kind", "bytes_of_180"), [("w8a8", "INT8", 180), ("w5a8", "INT8", 180), ("w4a8", "INT4", 90), ("w3a8", "INT4", 90)]
)
def test_weights_become_integers_with_a_scale_a_channel(
    case: Callable[..., Case], tmp_path: Path, precision: str, kind: str, bytes_of_180: int
) -> None:
    quantized = case(Convolutions, precision)
    ir.save(quantized.insert(), tmp_path / "m.onnx")
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    weight = stored["middle.weight.int"]
    assert weight.data_type == onnx.TensorProto.DataType.Value(kind)
    assert len(weight.raw_data) == bytes_of_180
    layer = quantized.layer("middle")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight).astype(np.int8), layer.integers.numpy())
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored["middle.weight.scale"]), layer.weight.scale.numpy())
    assert not {"first.weight", "middle.weight", "last.weight", "middle.bias"} & set(stored)
    assert {"first.bias", "last.bias"} <= set(stored)  # 8-bit weights with float activations keep their float bias


def test_packed_weights_are_widened_before_they_are_dequantized(case: Callable[..., Case]) -> None:
    model = case(Convolutions, "w4a8").insert()
    middle = next(node for node in model.graph if node.outputs[0].name == "c")
    assert _producers(middle, 1) == ["DequantizeLinear", "Sub", "Cast"]
    assert _producers(middle, 0) == ["DequantizeLinear", "QuantizeLinear"]
    assert _producers(middle, 2) == ["DequantizeLinear"]


def test_first_and_last_layer_have_float_activations(case: Callable[..., Case]) -> None:
    model = case(Convolutions, "w4a8").insert()
    first, _, last = (node for node in model.graph if node.op_type == "Conv")
    for node in (first, last):
        assert _producers(node, 1) == ["Mul", "Cast"]
        assert _producers(node, 0) == []
        assert _producers(node, 2) == []


def test_output_gets_a_pair_that_every_reader_takes(case: Callable[..., Case]) -> None:
    model = case(Convolutions, "w8a8").insert()
    middle = next(node for node in model.graph if node.outputs[0].name == "c")
    (quantize,) = (use.node for use in middle.outputs[0].uses())
    (dequantize,) = (use.node for use in quantize.outputs[0].uses())
    (reader,) = (use.node for use in dequantize.outputs[0].uses())
    assert [quantize.op_type, dequantize.op_type, reader.op_type] == ["QuantizeLinear", "DequantizeLinear", "Relu"]


def test_bias_of_an_integer_kernel_is_int32_in_the_product_of_scales(case: Callable[..., Case]) -> None:
    quantized = case(Convolutions, "w8a8")
    model, layer = quantized.insert(), quantized.layer("middle")
    assert layer.input is not None
    integers, scale = (stored_tensor(model, f"middle.bias.{part}").numpy() for part in ("int", "scale"))
    assert integers.dtype == np.int32
    np.testing.assert_allclose(scale, layer.input.scale * layer.weight.scale.numpy(), rtol=1e-7)
    np.testing.assert_allclose(integers * scale, quantized.network.get_parameter("middle.bias").numpy(), atol=scale.max() / 2)


def test_readers_of_one_tensor_share_its_pair(case: Callable[..., Case]) -> None:
    model = case(Attention, "w8a8").insert()
    query, key = (next(node for node in model.graph if node.outputs[0].name == name) for name in "qk")
    assert query.inputs[0] is key.inputs[0]
    assert _ops(model).count("QuantizeLinear") == 1


def test_scales_of_a_transposed_weight_lie_along_its_columns(case: Callable[..., Case]) -> None:
    quantized = case(Attention, "w4a8")
    model = quantized.insert()
    query = next(node for node in model.graph if node.outputs[0].name == "q")
    assert query.inputs[1] is not None
    dequantize = query.inputs[1].producer()
    assert dequantize is not None
    assert dequantize.attributes["axis"].as_int() == 1
    np.testing.assert_array_equal(
        stored_tensor(model, "query.weight.int").numpy().astype(np.int8), quantized.layer("query").integers.numpy().T
    )
    assert not any(name.endswith(".T") for name in model.graph.initializers)


def test_fewer_activation_bits_are_clipped_to_their_range_first(case: Callable[..., Case]) -> None:
    quantized = case(Convolutions, "w8a4")
    model, quantizer = quantized.insert(), quantized.layer("middle").input
    assert quantizer is not None
    middle = next(node for node in model.graph if node.outputs[0].name == "c")
    assert _producers(middle, 0) == ["DequantizeLinear", "QuantizeLinear", "Clip"]
    (clip,) = (node for node in model.graph if node.op_type == "Clip")
    low, high = (value.const_value.numpy() for value in clip.inputs[1:] if value is not None and value.const_value is not None)
    assert low == np.float32(-quantizer.zero_point * quantizer.scale)
    assert high == pytest.approx((15 - quantizer.zero_point) * quantizer.scale, rel=1e-7)


def test_weights_alone_are_quantized_at_sixteen_activation_bits(case: Callable[..., Case]) -> None:
    model = case(Convolutions, "w4a16").insert()
    assert "QuantizeLinear" not in _ops(model)
    assert stored_tensor(model, "middle.weight.int").dtype == ir.DataType.INT4


def test_nothing_to_quantize_changes_nothing(graph_of: GraphOf) -> None:
    model = graph_of(Convolutions.text, Convolutions())
    assert not InsertQuantization((), ORT)(model).modified
    assert _ops(model) == ["Conv", "Relu", "Conv", "Relu", "Conv"]


def test_quantized_graphs_are_valid_onnx(case: Callable[..., Case], tmp_path: Path) -> None:
    for kind, precision, placement in itertools.product(SHAPES, ("w4a4", "w4a16"), PLACEMENTS.values()):
        ir.save(case(kind, precision, placement=placement).insert(), tmp_path / "m.onnx")
        onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


# TensorRT's forms


def test_tensorrt_finds_pairs_on_inputs_and_weights_and_nowhere_else(case: Callable[..., Case]) -> None:
    model = case(Convolutions, "w4a8", placement=TRT).insert()
    first, middle, last = (node for node in model.graph if node.op_type == "Conv")
    assert [_producers(middle, index) for index in range(3)] == [["DequantizeLinear", "QuantizeLinear"], ["DequantizeLinear"], []]
    for node in (first, last):
        assert [_producers(node, index) for index in range(3)] == [[], ["DequantizeLinear"], []]
    assert _ops(model).count("QuantizeLinear") == 1
    assert stored_tensor(model, "middle.weight.int").dtype == ir.DataType.INT8
    points = [stored_tensor(model, name) for name in model.graph.initializers if "zero_point" in name]
    assert len(points) == 4
    assert all(point.dtype == ir.DataType.INT8 and not point.numpy().any() for point in points)


def test_four_bit_linear_weights_alone_are_packed_in_blocks_with_the_scales_of_their_channels(case: Callable[..., Case]) -> None:
    for kind, axis, size in ((Wide, 0, 32), (Flat, 1, 32)):
        quantized = case(kind, "w4a16", placement=TRT)
        model, layer = quantized.insert(), quantized.layer("middle")
        (dequantize,) = (use.node for use in model.graph.initializers["middle.weight.int"].uses())
        assert (dequantize.attributes["axis"].as_int(), dequantize.attributes["block_size"].as_int()) == (axis, size)
        stored, scales = stored_tensor(model, "middle.weight.int"), stored_tensor(model, "middle.weight.scale").numpy()
        assert stored.dtype == ir.DataType.INT4
        in_torchs_order = scales.T if axis == 0 else scales
        np.testing.assert_array_equal(in_torchs_order, np.tile(layer.weight.scale.numpy()[:, None], layer.layer.shape[1] // size))


def test_four_bit_weights_beside_integer_activations_or_without_blocks_are_int8(case: Callable[..., Case]) -> None:
    assert stored_tensor(case(Wide, "w4a8", placement=TRT).insert(), "middle.weight.int").dtype == ir.DataType.INT8
    assert stored_tensor(case(Wide, "w4a16", placement=TRT).insert(), "narrow.weight.int").dtype == ir.DataType.INT8
    assert stored_tensor(case(Convolutions, "w4a16", placement=TRT).insert(), "middle.weight.int").dtype == ir.DataType.INT8
