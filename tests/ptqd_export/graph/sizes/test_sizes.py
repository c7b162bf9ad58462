"""Integers on disk are really small: bytes counted in the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from onnx_ir.passes import common
from torch import Tensor, nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.placement import PLACEMENTS
from calib.quantizers.rules.precision import Precision
from engines.untrusted.external_data import graph_files
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.graph.reading.graph_layers import find_layers, weighted_nodes
from ptqd_export.graph.trace import lower, trace
from ptqd_export.models.base import LoadedModel
from tests.ptqd_export.graph.large_u_net import large_u_net

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

ORT = PLACEMENTS["onnxruntime"]


@pytest.fixture(params=[("class_build", "w8a8"), ("class_build", "w4a4"), ("class_build", "w3a8"), ("cross_build", "w4a8")], ids="-".join)
def stored(request: pytest.FixtureRequest) -> tuple[Built, str, dict[str, TensorProto]]:
    name, precision = request.param
    built: Built = request.getfixturevalue(name)
    return built, precision, {tensor.name: tensor for tensor in onnx.load(built.graph(precision)).graph.initializer}


def test_every_weight_takes_its_bits_and_no_more(stored: tuple[Built, str, dict[str, TensorProto]]) -> None:
    built, precision, tensors = stored
    for layer in built.quantize(precision):
        tensor = tensors[f"{layer.layer.name}.weight.int"]
        packed = layer.weight.bits <= 4
        assert tensor.data_type == (TensorProto.INT4 if packed else TensorProto.INT8)
        assert len(tensor.raw_data) == (-(-layer.layer.weights // 2) if packed else layer.layer.weights)
        assert not tensor.int32_data
        assert layer.weight.bits in (int(precision[1]), 8)


def test_no_float_copy_of_a_weight_is_left(stored: tuple[Built, str, dict[str, TensorProto]]) -> None:
    built, precision, tensors = stored
    layers = built.quantize(precision)
    assert len(layers) == len(built.network.layers)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.data_type == TensorProto.FLOAT}
    state = built.context.model.adapter.network.state_dict()
    others = sum(value.numel() for name, value in state.items() if name not in {f"{layer.layer.name}.weight" for layer in layers})
    scales = sum(2 * layer.layer.shape[0] for layer in layers)  # of the weight, and of the bias
    norms = sum(value.numel() for name, value in state.items() if "norm" in name)  # may be kept in two shapes
    assert sum(len(tensor.raw_data) for tensor in floats.values()) <= 4 * (others + scales + norms) + 4000
    assert not {f"{layer.layer.name}.weight{suffix}" for layer in layers for suffix in ("", ".T")} & set(tensors)


class Wide(nn.Module):
    """1.8 million weights in the middle, next to nothing at the ends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 256, 1)
        self.blocks = nn.Sequential(*(nn.Conv2d(256, 256, 3, padding=1) for _ in range(3)))
        self.conv_out = nn.Conv2d(256, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.blocks(self.conv_in(x)))
        return out


def test_files_shrink_with_the_bits(as_model: Callable[[nn.Module, tuple[int, ...]], LoadedModel], tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = _sizes(as_model(Wide(), (4, 4, 4)), ("w8a8", "w4a8", "w2a8"), tmp_path)
    assert sizes["fp32"] > 4 * 3 * 256 * 256 * 9
    assert 0.25 < sizes["w8a8"] / sizes["fp32"] < 0.26
    assert 0.125 < sizes["w4a8"] / sizes["fp32"] < 0.135
    assert sizes["w2a8"] == pytest.approx(sizes["w4a8"], rel=1e-3)  # packed two a byte, not four


@pytest.mark.slow
def test_files_of_a_36_million_parameter_u_net_shrink_to_what_is_promised(tmp_path: Path) -> None:
    sizes = _sizes(large_u_net(), ("w8a8", "w4a8"), tmp_path)
    assert sizes["w8a8"] / sizes["fp32"] <= 0.28
    assert sizes["w4a8"] / sizes["fp32"] <= 0.17


def _sizes(model: LoadedModel, precisions: tuple[str, ...], folder: Path) -> dict[str, int]:
    """Bytes of the graphs, made without a build: random states, and scales of the whole range."""
    graph = trace(model)
    lower(graph, ORT)
    path = folder / "fp32.onnx"
    save_graph(graph, path)
    layers = find_layers(graph.graph, dict.fromkeys(weighted_nodes(graph.graph), 1))
    network = model.adapter.network
    with observe_activations(network, [layer.source for layer in layers], [layer.name for layer in layers], 1) as seen, torch.no_grad():
        model.adapter(*model.example_inputs(2))
    quantizer = Quantizer(network, layers, seen, ORT, QuantizationSettings("max", "max"))
    sizes = {"fp32": _bytes(path)}
    for precision in precisions:
        quantized = ir.load(path)
        insert = InsertQuantization(quantizer.quantize(Precision.parse(precision)), ORT)
        ir.passes.Sequential(insert, common.RemoveUnusedNodesPass())(quantized)
        save_graph(quantized, folder / f"{precision}.onnx")
        sizes[precision] = _bytes(folder / f"{precision}.onnx")
    return sizes


def _bytes(graph: Path) -> int:
    return sum(file.stat().st_size for file in graph_files(graph))
