"""Q/DQ written into graphs of this test's own, node by node, and what they then compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from calib.observers import observing
from calib.oracle import fake_quantized
from calib.placement import PLACEMENTS, Placement
from calib.precision import Precision
from calib.quantize import QuantizationSettings, Quantizer
from calib.quantized_layer import QuantizedLayer
from ptqd_export.graph_layers import find_layers
from ptqd_export.passes.quantization import InsertQuantization, pack_int4

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    GraphOf = Callable[[str, nn.Module], ir.Model]
    Run = Callable[..., Array]

ORT, TRT = PLACEMENTS["onnxruntime"], PLACEMENTS["tensorrt"]
DEFAULT = QuantizationSettings()


class Convolutions(nn.Module):
    """Three in a row: the middle one alone is no boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 5, 3, padding=1)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return out

    text = """
        g (float[N,2,6,6] sample, float[4,2,3,3] first_weight, float[4] first_bias, float[5,4,3,3] middle_weight, float[5] middle_bias,
           float[2,5,1,1] last_weight, float[2] last_bias) => (float[N,2,6,6] out)
        {
            a = Conv <pads = [1, 1, 1, 1]> (sample, first_weight, first_bias) b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, middle_weight, middle_bias) d = Relu (c)
            out = Conv (d, last_weight, last_bias)
        }"""


class Attention(nn.Module):
    """`query` and `key` read one tensor, behind a layer and before one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.query = nn.Linear(4, 3)
        self.key = nn.Linear(4, 3, bias=False)
        self.last = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        out: Tensor = self.last(self.query(h) * self.key(h))
        return out

    text = """
        g (float[N,7,6] sample, float[6,4] first_weight_T, float[4] first_bias, float[4,3] query_weight_T, float[3] query_bias,
           float[4,3] key_weight_T, float[3,6] last_weight_T, float[6] last_bias) => (float[N,7,6] out)
        {
            a = MatMul (sample, first_weight_T) b = Add (a, first_bias) h = Tanh (b)
            q = MatMul (h, query_weight_T) qb = Add (q, query_bias) k = MatMul (h, key_weight_T) p = Mul (qb, k)
            o = MatMul (p, last_weight_T) out = Add (o, last_bias)
        }"""


class Repeated(nn.Module):
    """The middle layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.middle(torch.relu(self.middle(3 * self.first(x))))))
        return out

    text = """
        g (float[N,2,6,6] sample, float[4,2,1,1] first_weight, float[4] first_bias, float[4,4,3,3] middle_weight, float[4] middle_bias,
           float[2,4,1,1] last_weight, float[2] last_bias) => (float[N,2,6,6] out) <float three = {3}>
        {
            a = Conv (sample, first_weight, first_bias) s = Mul (a, three)
            b = Conv <pads = [1, 1, 1, 1]> (s, middle_weight, middle_bias) c = Relu (b)
            d = Conv <pads = [1, 1, 1, 1]> (c, middle_weight, middle_bias) e = Relu (d)
            out = Conv (e, last_weight, last_bias)
        }"""


class Wide(nn.Module):
    """The middle layer reads three blocks of 32 channels; of the last but one's 20 channels no block is made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 96)
        self.middle = nn.Linear(96, 20, bias=False)
        self.narrow = nn.Linear(20, 8)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.narrow(torch.tanh(self.middle(torch.tanh(self.first(x)))))))
        return out

    text = """
        g (float[N,7,6] sample, float[6,96] first_weight_T, float[96] first_bias, float[96,20] middle_weight_T,
           float[20,8] narrow_weight_T, float[8] narrow_bias, float[8,6] last_weight_T, float[6] last_bias) => (float[N,7,6] out)
        {
            a = MatMul (sample, first_weight_T) b = Add (a, first_bias) c = Tanh (b)
            m = MatMul (c, middle_weight_T) n = Tanh (m)
            r = MatMul (n, narrow_weight_T) s = Add (r, narrow_bias) t = Tanh (s)
            o = MatMul (t, last_weight_T) out = Add (o, last_bias)
        }"""


class Flat(nn.Module):
    """Linear layers of vectors that depend on the state: Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.middle = nn.Linear(32, 20)
        self.last = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))
        return out

    text = """
        g (float[N,6] sample, float[32,6] first_weight, float[32] first_bias, float[20,32] middle_weight, float[20] middle_bias,
           float[6,20] last_weight, float[6] last_bias) => (float[N,6] out)
        {
            a = Gemm <transB = 1> (sample, first_weight, first_bias) b = Tanh (a)
            m = Gemm <transB = 1> (b, middle_weight, middle_bias) n = Tanh (m)
            out = Gemm <transB = 1> (n, last_weight, last_bias)
        }"""


Kind = type[Convolutions | Attention | Repeated | Wide | Flat]
SHAPES: dict[Kind, tuple[int, ...]] = {
    Convolutions: (2, 6, 6), Attention: (7, 6), Repeated: (2, 6, 6), Wide: (7, 6), Flat: (6,),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, its graph, an input, and the layers to quantize."""

    placement: Placement
    network: Convolutions | Attention | Repeated | Wide | Flat
    model: ir.Model
    x: Tensor
    layers: Sequence[QuantizedLayer]

    def layer(self, name: str) -> QuantizedLayer:
        (found,) = (layer for layer in self.layers if layer.layer.name == name)
        return found

    def insert(self) -> ir.Model:
        assert InsertQuantization(self.layers, self.placement)(self.model).modified
        ir.passes.common.RemoveUnusedNodesPass()(self.model)
        return self.model

    def oracle(self) -> Array:
        with torch.no_grad():
            out: Array = fake_quantized(self.network, self.layers)(self.x).numpy()
        return out


@pytest.fixture
def case(graph_of: GraphOf) -> Callable[..., Case]:
    def make(kind: Kind, precision: str, change: Callable[[nn.Module], object] = nn.Module.eval, placement: Placement = ORT) -> Case:
        torch.manual_seed(0)
        network = kind().eval().requires_grad_(False)
        change(network)
        x = torch.randn(16, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
        model = graph_of(kind.text, network)
        layers = find_layers(model.graph, dict.fromkeys(dict(network.named_modules()), 1))
        with observing(network, [layer.source for layer in layers], [layer.name for layer in layers], 1) as seen:
            network(x)
        quantizer = Quantizer(network, layers, seen, placement, DEFAULT)
        return Case(placement, network, model, x, quantizer.quantize(Precision.parse(precision)))

    return make


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _producers(node: ir.Node, index: int) -> list[str]:
    """Operators between a node's input and the network's own node or constant behind it, last first."""
    ops: list[str] = []
    value = node.inputs[index]
    written = ("QuantizeLinear", "DequantizeLinear", "Cast", "Mul", "Clip")
    while value is not None and (producer := value.producer()) and producer.op_type in written:
        ops.append(producer.op_type)
        value = producer.inputs[0]
    return ops


def _stored(model: ir.Model, name: str) -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


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
    assert _producers(middle, 1) == ["DequantizeLinear", "Cast"]
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
    integers, scale = (_stored(model, f"middle.bias.{part}").numpy() for part in ("int", "scale"))
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
    np.testing.assert_array_equal(_stored(model, "query.weight.int").numpy().astype(np.int8), quantized.layer("query").integers.numpy().T)
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
    assert _stored(model, "middle.weight.int").dtype == ir.DataType.INT4


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
    assert _stored(model, "middle.weight.int").dtype == ir.DataType.INT8
    points = [_stored(model, name) for name in model.graph.initializers if "zero_point" in name]
    assert len(points) == 4
    assert all(point.dtype == ir.DataType.INT8 and not point.numpy().any() for point in points)


def test_four_bit_linear_weights_alone_are_packed_in_blocks_with_the_scales_of_their_channels(case: Callable[..., Case]) -> None:
    for kind, axis, size in ((Wide, 0, 32), (Flat, 1, 32)):
        quantized = case(kind, "w4a16", placement=TRT)
        model, layer = quantized.insert(), quantized.layer("middle")
        (dequantize,) = (use.node for use in model.graph.initializers["middle.weight.int"].uses())
        assert (dequantize.attributes["axis"].as_int(), dequantize.attributes["block_size"].as_int()) == (axis, size)
        stored, scales = _stored(model, "middle.weight.int"), _stored(model, "middle.weight.scale").numpy()
        assert stored.dtype == ir.DataType.INT4
        in_torchs_order = scales.T if axis == 0 else scales
        np.testing.assert_array_equal(in_torchs_order, np.tile(layer.weight.scale.numpy()[:, None], layer.layer.shape[1] // size))


def test_four_bit_weights_beside_integer_activations_or_without_blocks_are_int8(case: Callable[..., Case]) -> None:
    assert _stored(case(Wide, "w4a8", placement=TRT).insert(), "middle.weight.int").dtype == ir.DataType.INT8
    assert _stored(case(Wide, "w4a16", placement=TRT).insert(), "narrow.weight.int").dtype == ir.DataType.INT8
    assert _stored(case(Convolutions, "w4a16", placement=TRT).insert(), "middle.weight.int").dtype == ir.DataType.INT8


# What the graphs compute


@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w2a8", "w4a4", "w8a5", "w5a6", "w4a16"])
@pytest.mark.parametrize("kind", [Convolutions, Attention, Repeated, Wide, Flat])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_graph_computes_what_the_oracle_computes(
    case: Callable[..., Case], run_graph: Run, placement: Placement, kind: Kind, precision: str
) -> None:
    quantized = case(kind, precision, placement=placement)
    expected, full = quantized.oracle(), quantized.network(quantized.x).numpy()
    noise = np.abs(expected - full).mean()
    found = run_graph(quantized.insert(), {"sample": quantized.x.numpy()})
    apart = np.abs(found - expected)
    assert np.mean(apart > 1e-5 * np.abs(full).max()) < 2e-3  # values at a rounding tie, and what hangs on them
    assert apart.mean() < 0.01 * noise


@pytest.mark.parametrize("kind", [Convolutions, Attention, Repeated, Wide, Flat])
def test_graph_of_8_bit_floats_computes_what_the_oracle_computes(case: Callable[..., Case], run_graph: Run, kind: Kind) -> None:
    quantized = case(kind, "fp8", placement=TRT)
    expected, full = quantized.oracle(), quantized.network(quantized.x).numpy()
    noise = np.abs(expected - full).mean()
    assert 1e-3 < noise / np.abs(full).mean() < 0.1
    model = quantized.insert()
    inner = [layer for layer in quantized.layers if layer.input is not None]
    assert inner
    for layer in inner:
        assert _stored(model, f"{layer.layer.name}.weight.int").dtype == ir.DataType.FLOAT8E4M3FN
    points = [value.const_value for name, value in model.graph.initializers.items() if name.startswith("zero_point.")]
    assert {point.dtype for point in points if point is not None} == {ir.DataType.FLOAT8E4M3FN}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    apart = np.abs(run_graph(model, {"sample": quantized.x.numpy()}) - expected)
    assert np.mean(apart > 1e-5 * np.abs(full).max()) < 2e-3
    assert apart.mean() < 0.01 * noise


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_fused_kernels_compute_it_too(case: Callable[..., Case], run_graph: Run, precision: str) -> None:
    quantized = case(Convolutions, precision)
    expected, full = quantized.oracle(), quantized.network(quantized.x).numpy()
    found = run_graph(quantized.insert(), {"sample": quantized.x.numpy()}, "fast")
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected - full).mean()


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_channel_of_zero_weights_with_a_large_bias_comes_out_right(case: Callable[..., Case], run_graph: Run, mode: str) -> None:
    def plant(network: nn.Module) -> None:
        network.get_parameter("middle.weight")[2] = 0
        network.get_parameter("middle.bias")[2] = 500.0
        network.get_parameter("last.weight")[:] = 0
        network.get_parameter("last.weight")[0, 2] = 1  # the first output is that channel

    quantized = case(Convolutions, "w8a8", plant)
    expected = 500 + float(quantized.network.get_parameter("last.bias")[0])
    found = run_graph(quantized.insert(), {"sample": quantized.x.numpy()}, mode)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0.005)
