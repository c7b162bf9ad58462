"""Weights with scales of groups of input channels: in the graph, in the oracle, and in the kernels that run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from calib.quantizers.quantize import QuantizationSettings
from calib.quantizers.rules.placement import PLACEMENTS, LayerOverrides, Placement
from engines.backends.onnxruntime.onnxruntime_session import open_session, session_config
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from tests.ptqd_export.graph.passes.quantized_networks import Case, Convolutions, Flat, Kind, Run, Wide, stored_tensor

GROUPS = QuantizationSettings(overrides=LayerOverrides(weight_group=32))


@pytest.mark.parametrize(("kind", "axis"), [(Wide, 0), (Flat, 1)])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_graph_has_a_scale_for_each_group_and_computes_what_the_oracle_computes(
    case: Callable[..., Case], run_graph: Run, placement: Placement, kind: Kind, axis: int
) -> None:
    quantized = case(kind, "w4a16", placement=placement, settings=GROUPS)
    layer, model = quantized.layer("middle"), quantized.insert()
    assert layer.weight.scale.shape == (20, layer.layer.shape[1] // 32)
    assert len(layer.weight.scale.unique()) > 0.7 * layer.weight.scale.numel()  # not those of channels, repeated
    (dequantize,) = (use.node for use in model.graph.initializers["middle.weight.int"].uses())
    assert (dequantize.attributes["axis"].as_int(), dequantize.attributes["block_size"].as_int()) == (axis, 32)
    scales = stored_tensor(model, "middle.weight.scale").numpy()
    np.testing.assert_array_equal(scales if axis else scales.T, layer.weight.scale.numpy())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    expected, found = quantized.oracle(), run_graph(model, {"sample": quantized.x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_tensorrt_takes_the_graph(case: Callable[..., Case], tmp_path: Path) -> None:
    for kind in (Wide, Flat, Convolutions):
        ir.save(case(kind, "w4a16", placement=PLACEMENTS["tensorrt"], settings=GROUPS).insert(), tmp_path / "m.onnx")
        check_tensorrt_graph(tmp_path / "m.onnx")


def test_onnx_runtime_multiplies_groups_by_float_activations(case: Callable[..., Case], run_graph: Run, tmp_path: Path) -> None:
    """Its kernel for packed weights would round the activations to 8 bits unless it is told not to."""
    quantized = case(Wide, "w4a16", settings=GROUPS)
    expected, model = quantized.oracle(), quantized.insert()
    ir.save(model, tmp_path / "m.onnx")
    open_session(tmp_path / "m.onnx", session_config("fast"), optimized=tmp_path / "optimized.onnx")
    (kernel,) = (node for node in onnx.load(tmp_path / "optimized.onnx").graph.node if node.op_type == "MatMulNBits")
    assert {("bits", 4), ("block_size", 32), ("accuracy_level", 1)} <= {(one.name, one.i) for one in kernel.attribute}
    found = run_graph(model, {"sample": quantized.x.numpy()}, "fast")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_groups_take_noise_away(case: Callable[..., Case]) -> None:
    full = case(Wide, "w4a16").network(case(Wide, "w4a16").x).numpy()
    noise = [np.square(case(Wide, "w4a16", settings=how).oracle() - full).mean() for how in (QuantizationSettings(), GROUPS)]
    assert noise[1] < noise[0]


def test_layers_without_groups_say_why(case: Callable[..., Case]) -> None:
    narrow = case(Wide, "w4a16", settings=GROUPS).layer("narrow")
    assert narrow.weight.scale.shape == (8,)
    assert str(narrow.rule.reason).endswith("one weight scale for each output channel: blocks of 32 do not divide 20 input channels")
    middle = case(Convolutions, "w4a16", settings=GROUPS).layer("middle")
    assert str(middle.rule.reason).endswith("one weight scale for each output channel: a Conv takes no blocks of input channels")
    assert torch.equal(middle.integers, case(Convolutions, "w4a16").layer("middle").integers)
