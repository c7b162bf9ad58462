"""Branches of low rank beside quantized layers: in the graph, in the oracle, and in the kernels that run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from calib.quantizers.low_rank_branch import LowRankBranch
from calib.quantizers.quantize import QuantizationSettings
from calib.quantizers.rules.placement import PLACEMENTS, LayerOverrides, Placement
from engines.backends.openvino.openvino_backend import OpenVinoBackend
from ptqd_export.graph.checks.integer_kernels import check_integer_kernels
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from ptqd_export.graph.passes.layer_outputs import ShowLayerOutputs
from ptqd_export.graph.passes.low_rank_branches import AddLowRankBranches
from ptqd_export.graph.passes.raw_layer_outputs import ShowRawLayerOutputs
from tests.ptqd_export.graph.passes.quantized_networks import (
    Array,
    Attention,
    Case,
    Convolutions,
    Flat,
    GraphOf,
    Kind,
    Run,
    Wide,
    stored_tensor,
)

RANK_4 = QuantizationSettings(overrides=LayerOverrides(low_rank=4))
RANK_1 = QuantizationSettings(overrides=LayerOverrides(low_rank=1))


@pytest.mark.parametrize("precision", ["w4a4", "w4a8"])
@pytest.mark.parametrize("kind", [Wide, Flat])
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_graph_computes_what_the_oracle_computes(
    case: Callable[..., Case], run_graph: Run, placement: Placement, kind: Kind, precision: str
) -> None:
    quantized = case(kind, precision, placement=placement, settings=RANK_4)
    layer, model = quantized.layer("middle"), quantized.insert()
    assert layer.branch is not None
    assert layer.rule.low_rank == layer.branch.rank == 4
    np.testing.assert_array_equal(stored_tensor(model, "middle.low_rank.down").numpy(), layer.branch.down.numpy())
    np.testing.assert_array_equal(stored_tensor(model, "middle.low_rank.up").numpy(), layer.branch.up.numpy())
    (reader,) = (use.node for use in model.graph.initializers["middle.low_rank.down"].uses())
    x = reader.inputs[0]
    assert x is not None
    assert _maker(x) == "Tanh"  # not the values that were quantized
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    expected, found = quantized.oracle(), run_graph(model, {"sample": quantized.x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_layers_of_one_tensor_share_its_quantizer_and_have_branches_of_their_own(case: Callable[..., Case], run_graph: Run) -> None:
    quantized = case(Attention, "w4a4", settings=RANK_1)
    query, key = quantized.layer("query"), quantized.layer("key")
    assert query.input == key.input
    model = quantized.insert()
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    assert {"query.low_rank.up", "key.low_rank.up"} <= set(model.graph.initializers)
    expected, found = quantized.oracle(), run_graph(model, {"sample": quantized.x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_branch_takes_noise_away(case: Callable[..., Case], placement: Placement) -> None:
    full = case(Wide, "w4a4").network(case(Wide, "w4a4").x).numpy()
    noise = [
        np.square(case(Wide, "w4a4", placement=placement, settings=how).oracle() - full).mean() for how in (QuantizationSettings(), RANK_4)
    ]
    assert noise[1] < 0.6 * noise[0]


@pytest.mark.parametrize("kind", [Wide, Flat])
def test_quantized_product_keeps_its_integer_kernel(case: Callable[..., Case], run_graph: Run, tmp_path: Path, kind: Kind) -> None:
    quantized = case(kind, "w4a4", settings=RANK_4)
    expected, model = quantized.oracle(), quantized.insert()
    ir.save(model, tmp_path / "m.onnx")
    assert check_integer_kernels(tmp_path / "m.onnx", quantized.layers) >= 1
    found = run_graph(model, {"sample": quantized.x.numpy()}, "fast")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_openvino_computes_it(case: Callable[..., Case], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    quantized = case(Wide, "w4a4", settings=RANK_4)
    expected, x = quantized.oracle(), quantized.x.numpy()
    ir.save(quantized.insert(), tmp_path / "m.onnx")
    found = OpenVinoBackend().open(tmp_path / "m.onnx", len(x)).run({"sample": x})
    assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()


def test_tensorrt_takes_the_graph(case: Callable[..., Case], tmp_path: Path) -> None:
    ir.save(case(Wide, "w4a4", placement=PLACEMENTS["tensorrt"], settings=RANK_4).insert(), tmp_path / "m.onnx")
    check_tensorrt_graph(tmp_path / "m.onnx")


def test_layers_without_a_branch_say_why(case: Callable[..., Case]) -> None:
    middle = case(Convolutions, "w4a4", settings=RANK_4).layer("middle")
    assert (middle.branch, middle.rule.reason) == (None, "no low-rank branch: a Conv takes none")
    narrow = case(Wide, "w4a4", settings=QuantizationSettings(overrides=LayerOverrides(low_rank=6))).layer("narrow")
    assert (narrow.branch, narrow.rule.reason) == (None, "no low-rank branch: one of rank 6 would cost as much as the 8 x 20 weight")


@pytest.mark.parametrize("precision", ["w8a8", "w4a16"])
def test_eight_bits_and_float_activations_have_no_branches(case: Callable[..., Case], precision: str) -> None:
    with_, without = (case(Wide, precision, settings=how) for how in (RANK_4, QuantizationSettings()))
    assert all(layer.branch is None and layer.rule.low_rank is None for layer in with_.layers)
    assert torch.equal(with_.layer("middle").integers, without.layer("middle").integers)


@pytest.mark.parametrize("show", [ShowLayerOutputs, ShowRawLayerOutputs])
def test_a_layer_shows_the_sum_with_its_branch(case: Callable[..., Case], run_graph: Run, show: type) -> None:
    """A branch whose other half was taken out of a float weight changes no output that is shown."""
    plain, branched = case(Attention, "fp32"), case(Attention, "fp32")
    branch = LowRankBranch(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3))
    weight = branched.model.graph.initializers["query.weight.T"]
    weight.const_value = ir.tensor(branch.rest_of(plain.network.get_parameter("query.weight")).T.contiguous().numpy(), name=weight.name)
    assert AddLowRankBranches({"query": branch})(branched.model).modified
    shown = [show()(one.model).model for one in (plain, branched)]
    names = [value.name for value in shown[0].graph.outputs]
    assert names == [value.name for value in shown[1].graph.outputs]
    for name in names:
        expected, found = (_output(run_graph, model, name, plain.x.numpy()) for model in shown)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def _maker(value: ir.Value) -> str | None:
    producer = value.producer()
    return None if producer is None else producer.op_type


def _output(run_graph: Run, model: ir.Model, name: str | None, x: Array) -> Array:
    only = model.clone()
    (wanted,) = (value for value in only.graph.outputs if value.name == name)
    only.graph.outputs[:] = [wanted]
    return run_graph(only, {"sample": x})


def test_nothing_is_added_without_branches(graph_of: GraphOf) -> None:
    assert not AddLowRankBranches({})(graph_of(Wide.text, Wide())).modified
