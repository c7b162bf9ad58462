"""What graphs with Q/DQ compute: what the oracle computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import nn

from calib.quantizers.rules.placement import PLACEMENTS, Placement
from tests.ptqd_export.graph.passes.quantized_networks import (
    TRT,
    Attention,
    Case,
    Convolutions,
    Flat,
    Kind,
    Repeated,
    Run,
    Wide,
    stored_tensor,
)


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
        assert stored_tensor(model, f"{layer.layer.name}.weight.int").dtype == ir.DataType.FLOAT8E4M3FN
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
