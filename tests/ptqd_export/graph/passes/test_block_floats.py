"""Floats in blocks: what graphs hold, and that their stand-in computes what the oracle computes, bit by bit in every block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import ShapeInferencePass

from calib.quantizers.floats.mxfp8 import Mxfp8ActivationQuantizer, Mxfp8WeightQuantizer
from calib.quantizers.floats.nvfp4 import Nvfp4ActivationQuantizer, Nvfp4WeightQuantizer
from calib.quantizers.quantizers import ActivationQuantizer
from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.errors import PtqdError
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from ptqd_export.graph.passes.block_floats import FP4_QUANTIZE, block_activation, declare
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.stand_in_backend import StandInBackend, runnable
from ptqd_export.measuring.torch_backend import TorchBackend
from tests.ptqd_export.graph.passes.quantized_networks import TRT, Array, Case, Convolutions, Flat, Kind, Wide, stored_tensor

PRECISIONS = ["nvfp4", "nvfp4a8", "mxfp8"]


def _inserted(quantized: Case) -> ir.Model:
    ShapeInferencePass()(quantized.model)  # a traced graph has its shapes
    return quantized.insert()


def _run(model: ir.Model, folder: Path, feeds: dict[str, Array]) -> Array:
    ir.save(model, folder / "m.onnx")
    check_tensorrt_graph(folder / "m.onnx")
    (folder / "runnable").mkdir(exist_ok=True)
    (out,) = run_outputs(runnable(folder / "m.onnx", folder / "runnable"), feeds, "exact").values()
    return out


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [Wide, Flat, Convolutions])
def test_stand_in_computes_what_the_oracle_computes(case: Callable[..., Case], tmp_path: Path, kind: Kind, precision: str) -> None:
    quantized = case(kind, precision, placement=TRT)
    expected, full = quantized.oracle(), quantized.network(quantized.x).numpy()
    noise = np.abs(expected - full).mean()
    assert 1e-3 < noise / np.abs(full).mean() < 0.3
    model = _inserted(quantized)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    apart = np.abs(_run(model, tmp_path, {"sample": quantized.x.numpy()}) - expected)
    assert np.mean(apart > 1e-5 * np.abs(full).max()) < 2e-3
    assert apart.mean() < 0.01 * noise


@pytest.mark.parametrize(("precision", "kinds"), [("nvfp4", ("FLOAT4E2M1", "FLOAT8E4M3FN")), ("mxfp8", ("FLOAT8E4M3FN", "UINT8"))])
def test_graph_holds_the_values_and_scales_of_its_blocks(case: Callable[..., Case], precision: str, kinds: tuple[str, str]) -> None:
    quantized = case(Wide, precision, placement=TRT)
    layer, model = quantized.layer("middle"), _inserted(quantized)
    values, scale = (stored_tensor(model, f"middle.weight.{part}") for part in ("int", "scale"))
    assert (values.dtype.name, scale.dtype.name) == kinds
    assert (values.shape.numpy(), scale.shape.numpy()) == ((20, 96), (20, 96 // (16 if precision == "nvfp4" else 32)))
    np.testing.assert_array_equal(values.numpy().astype(np.float32), layer.integers.float().numpy())
    if isinstance(layer.weight, Nvfp4WeightQuantizer):
        whole = stored_tensor(model, "middle.weight.global_scale").numpy()
        np.testing.assert_array_equal(scale.numpy().astype(np.float32) * whole, layer.weight.scale.numpy())
    else:
        assert isinstance(layer.weight, Mxfp8WeightQuantizer)
        np.testing.assert_array_equal(scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32), layer.weight.scale.numpy())


@pytest.mark.parametrize("high", ["fp16", "bf16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_float_part_is_converted_around_blocks(case: Callable[..., Case], tmp_path: Path, precision: str, high: str) -> None:
    quantized = case(Wide, precision, placement=TRT)
    expected, full = quantized.oracle(), quantized.network(quantized.x).numpy()
    model = _inserted(quantized)
    ToHalfPrecision("fp16" if high == "fp16" else "bf16")(model)
    found = _run(model, tmp_path, {"sample": quantized.x.numpy()})
    (middle,) = (node for node in model.graph if node.op_type == "MatMul" and node.outputs[0].name == "m")
    assert {value.dtype for value in middle.inputs if value is not None} == {
        ir.DataType.FLOAT16 if high == "fp16" else ir.DataType.BFLOAT16
    }
    assert np.square(found - full).mean() < 2 * np.square(expected - full).mean()


# Blocks alone


def _blocks(quantizer: ActivationQuantizer, axes: int = 3) -> ir.Model:
    shape = {2: "N,64", 3: "N,2,64", 4: "N,2,2,64"}[axes]
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[{shape}] x) => (float[{shape}] out) {{ out = Identity (x) }}'
    )
    declare(model)
    x, node, tape = model.graph.inputs[0], model.graph[0], ir.tape.Tape()
    node.replace_input_with(0, block_activation(model.graph, tape, x, quantizer))
    model.graph.insert_before(node, tape.nodes)
    return model


def _hard_values() -> Array:
    """Blocks of every magnitude, with ties, zeros, and largest values around the powers of two at which a scale changes."""
    rng = np.random.default_rng(0)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    ties = np.concatenate([magnitudes, (magnitudes[1:] + magnitudes[:-1]) / 2, [5.9]]).astype(np.float32)
    block = np.concatenate([ties, -ties, rng.normal(size=32).astype(np.float32)])
    powers = np.ldexp(np.float32(448), np.arange(-12, 12)).astype(np.float32)
    edges = [powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(1e9))]
    scaled = rng.uniform(-1, 1, (72, 64)).astype(np.float32)
    scaled[:, ::16] = 1
    scaled *= np.concatenate(edges)[:, None]
    drawn = rng.normal(size=(54, 64)).astype(np.float32) * np.logspace(-6, 4, 54)[:, None].astype(np.float32)
    return np.concatenate([block[None], np.zeros((1, 64), np.float32), scaled, drawn]).astype(np.float32)


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize(
    "quantizer", [Nvfp4ActivationQuantizer.of(2688.0), Nvfp4ActivationQuantizer.of(3.7), Mxfp8ActivationQuantizer.dynamic()]
)
def test_stand_in_finds_scales_and_values_as_the_oracle_does_bit_by_bit(tmp_path: Path, quantizer: ActivationQuantizer, axes: int) -> None:
    x = _hard_values().reshape(-1, *[2] * (axes - 2), 64)
    np.testing.assert_array_equal(_run(_blocks(quantizer, axes), tmp_path, {"x": x}), quantizer.fake(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("quantizer", [Nvfp4ActivationQuantizer.of(3.7), Mxfp8ActivationQuantizer.dynamic()])
def test_stand_in_computes_the_same_in_pytorch(tmp_path: Path, quantizer: ActivationQuantizer) -> None:
    x = _hard_values().reshape(-1, 2, 64)
    ir.save(_blocks(quantizer), tmp_path / "m.onnx")
    found = StandInBackend(TorchBackend()).open(tmp_path / "m.onnx", 1).run({"x": x})
    np.testing.assert_array_equal(found, quantizer.fake(torch.from_numpy(x)).numpy())


# What TensorRT refuses


def test_tensors_of_many_axes_are_reshaped_for_tensorrt(tmp_path: Path) -> None:
    model = _blocks(Nvfp4ActivationQuantizer.of(1.0), axes=4)
    assert [node.op_type for node in model.graph][:2] == ["Reshape", FP4_QUANTIZE]
    for value in model.graph[0].outputs:
        value.shape = ir.Shape(("N", 2, 2, 64))
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(PtqdError, match=r"(?s)only matrices, and stacks of them, in blocks.*a tensor of 4 axes.*a Reshape to 2 axes"):
        check_tensorrt_graph(tmp_path / "m.onnx")


def test_other_blocks_and_types_are_refused_by_name(case: Callable[..., Case], tmp_path: Path) -> None:
    def refusal(model: ir.Model) -> str:
        ir.save(model, tmp_path / "m.onnx")
        with pytest.raises(PtqdError) as caught:
            check_tensorrt_graph(tmp_path / "m.onnx")
        return str(caught.value)

    wrong = _blocks(Nvfp4ActivationQuantizer.of(1.0))
    wrong.graph[0].attributes["block_size"] = ir.AttrInt64("block_size", 32)
    assert "blocks of 32" in refusal(wrong)
    cast = _blocks(Mxfp8ActivationQuantizer.dynamic())
    last, tape = cast.graph[-1], ir.tape.Tape()
    last.replace_input_with(0, tape.op("Cast", [last.inputs[0]], attributes={"to": ir.DataType.FLOAT}))
    cast.graph.insert_before(last, tape.nodes)
    assert "crashes on a Cast of MXFP8 values" in refusal(cast)
    quantized = case(Wide, "nvfp4", placement=TRT)
    narrow = _inserted(quantized)
    (scale,) = (use.node.outputs[0] for use in narrow.graph.initializers["middle.weight.scale"].uses())
    scale.type = ir.TensorType(ir.DataType.FLOAT16)
    assert "4-bit floats only with float32 scales" in refusal(narrow)


def test_layers_without_blocks_leave_the_graph_as_it_is_for_8_bit_floats(case: Callable[..., Case]) -> None:
    """Convolutions have no blocks, so the graph needs no newer format either."""
    models = [_inserted(case(Convolutions, precision, placement=TRT)) for precision in ("nvfp4", "fp8")]
    blocks, floats = ([node.op_type for node in model.graph] for model in models)
    assert blocks == floats
    assert "trt" not in models[0].opset_imports
