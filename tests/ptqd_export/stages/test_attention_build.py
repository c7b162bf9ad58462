"""Bundles whose attention multiplies in 8 bits: built, verified, recorded and shown; networks and targets without it are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.precision import Precision
from calib.walk.activation_states import States
from engines.bundle.bundle import Bundle
from engines.errors import PtqdError, UsageError
from ptqd_export import cli as export_cli
from ptqd_export.graph.checks.verify import verify
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.plan import PlanFile
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.precisions import activations
from ptqd_export.stages.precisions.activations import load_observations
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.quantized_attention_sites import attention_sites, check_attention
from ptqd_export.stages.run_build import run_build
from ptqd_export.stages.summary import print_summary

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def _plan(built: Built, output: Path, form: str, **sections: Any) -> PlanFile:
    quantization = built.plan_file.plan.quantization.model_dump() | {"attention": form} | sections.pop("quantization", {})
    return built.resumed_in(output, quantization=quantization, **sections)


@pytest.fixture(scope="module")
def crossed(cross_trt_build: Built, tmp_path_factory: pytest.TempPathFactory) -> PlanFile:
    """Attention to the image and to a prompt, in float16 around, with two groups of steps; 8-bit floats."""
    output = tmp_path_factory.mktemp("attention") / "bundle"
    plan_file = _plan(cross_trt_build, output, "fp8", precisions=["w8a8", "w4a16"], quantization={"step_groups": 2})
    run_build(plan_file)
    return plan_file


def _statistics(plan_file: PlanFile, precision: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((plan_file.output_path / "statistics" / "tensorrt" / f"{precision}.json").read_text())
    return found


def test_attention_to_the_image_has_8_bit_products_and_that_to_the_prompt_float_ones(crossed: PlanFile) -> None:
    attention = _statistics(crossed, "w8a8")["attention"]
    forms = {(one["name"].rpartition(".")[2], one["form"]) for one in attention}
    assert forms == {("attn1", "fp8"), ("attn2", "float")}
    for one in attention:
        assert ("keys of a prompt" in str(one["reason"])) == (one["form"] == "float")
        assert len(one["scales"]) == (2 if one["form"] == "fp8" else 0)
        assert {scales["weights"] for scales in one["scales"]} == ({float(np.float16(1 / 448))} if one["scales"] else set())
    first, second = next(one["scales"] for one in attention if one["scales"])
    assert first != second


def test_precision_with_float_activations_keeps_float_products_and_says_why(crossed: PlanFile) -> None:
    attention = _statistics(crossed, "w4a16")["attention"]
    assert {(one["form"], one["reason"]) for one in attention} == {("float", "precision w4a16: weights only")}


def test_every_graph_has_a_pair_at_each_input_of_the_products(crossed: PlanFile) -> None:
    names = [one["form"] for one in _statistics(crossed, "w8a8")["attention"]]
    graphs = Bundle.open(crossed.output_path).manifest.precisions["w8a8"].networks
    assert len(graphs) == 2
    for graph in graphs:
        products = find_attention_pairs(crossed.output_path / graph.graph)
        assert products == [[ir.DataType.FLOAT8E4M3FN] * 4 if form == "fp8" else [] for form in names]


def find_attention_pairs(path: Path) -> list[list[ir.DataType]]:
    """Types of the quantized inputs of both products of every attention."""
    found = []
    for softmax in (node for node in ir.load(path).graph if node.op_type == "Softmax"):
        behind, products = softmax.outputs[0], list[ir.Node]()
        while not products:  # Softmax, and a pair if there is one
            (use,) = behind.uses()
            behind, products = use.node.outputs[0], [use.node] if use.node.op_type == "MatMul" else []
        inputs = [value for node in (_before(softmax.inputs[0]), *products) for value in node.inputs]
        pairs = [node.inputs[2] for node in map(_before, inputs) if node.op_type == "DequantizeLinear"]
        found.append([value.dtype for value in pairs if value is not None and value.dtype is not None])
    return found


def _before(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    return node


def test_products_count_with_8_by_8_bits(crossed: PlanFile, cross_trt_build: Built) -> None:
    """What the whole network saves: bit operations of the layers, of both kinds of products, and of nothing else."""
    found, macs = _statistics(crossed, "w8a8"), cross_trt_build.network.macs
    attention = found["attention"]
    products = [one["bit_operations"] // (64 if one["form"] == "fp8" else 256) for one in attention]
    layers = cross_trt_build.network.layers
    assert sum(products) + sum(layer.macs for layer in layers) == macs
    spent = sum(one["bit_operations"] for one in (*found["layers"], *attention))
    assert Bundle.open(crossed.output_path).manifest.precisions["w8a8"].bit_operations_saved_all == pytest.approx(macs * 1024 / spent)


def test_summary_and_inspect_tell_it(crossed: PlanFile, capsys: pytest.CaptureFixture[str]) -> None:
    attention = _statistics(crossed, "w8a8")["attention"]
    print_summary(crossed, 1.0)
    told = f"w8a8: fp8 products in {len(attention) // 2} of {len(attention)} attention layers; `ptqd-export inspect` says why not in all"
    assert told in " ".join(capsys.readouterr().out.split())
    shown = CliRunner().invoke(export_cli.main, ["inspect", str(crossed.output_path)])
    assert shown.exit_code == 0
    assert "Attention at w8a8" in shown.stdout
    assert attention[0]["name"] in shown.stdout
    as_json = json.loads(CliRunner().invoke(export_cli.main, ["inspect", str(crossed.output_path), "--json"]).stdout)
    assert as_json["attention"]["w8a8"] == attention


# Faults


@pytest.fixture(scope="module")
def int8_build(class_trt_build: Built, tmp_path_factory: pytest.TempPathFactory) -> PlanFile:
    plan_file = _plan(class_trt_build, tmp_path_factory.mktemp("attention") / "bundle", "int8", precisions=["w8a8"])
    run_build(plan_file)
    return plan_file


def test_wrong_scale_of_attention_does_not_pass_the_verification(int8_build: PlanFile) -> None:
    from tests.ptqd_export.conftest import Built

    built = Built(int8_build)
    sites = attention_sites(
        built.context, Precision.parse("w8a8"), Sources(built.stage("trace"), built.stage("states"), built.stage("observe"))
    )
    seen = load_observations(built.stage("observe"))
    network, layers = built.context.model.adapter.network, built.quantize("w8a8")
    quantizer = Quantizer(network, built.network.layers, seen, built.context.placement, QuantizationSettings())
    attention = sites.quantized(quantizer)
    assert len(attention) >= 2
    states = States.load(built.stage("states") / "states.npz").first(8)
    verify(built.context.model, built.graph("w8a8"), layers, states, attention=attention)
    wrong = [replace(attention[0], value=replace(attention[0].value, scale=1.02 * attention[0].value.scale)), *attention[1:]]
    with pytest.raises(PtqdError, match="does not compute what its oracle computes"):
        verify(built.context.model, built.graph("w8a8"), layers, states, attention=wrong)
    with pytest.raises(PtqdError, match="does not compute what its oracle computes"):
        verify(built.context.model, built.graph("w8a8"), layers, states)


# Refusals


def test_network_without_attention_is_refused_before_anything_long(class_trt_build: Built, tmp_path: Path) -> None:
    model = ir.load(class_trt_build.stage("trace") / "fp32.onnx")
    for node in list(model.graph):
        if node.op_type == "Softmax":
            other = ir.node("Sigmoid", node.inputs[:1])
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [other], node.outputs, other.outputs)
    save_graph(model, tmp_path / "fp32.onnx")
    context = BuildContext(_plan(class_trt_build, tmp_path / "bundle", "fp8"))
    check_attention(class_trt_build.context, tmp_path)
    with pytest.raises(UsageError, match=r"(?s)has no attention to quantize.*quantization\.attention \"fp8\".*to \"float\""):
        check_attention(context, tmp_path)


def test_network_that_attends_in_its_own_words_is_refused(class_trt_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "find_attention", lambda _graph: [])
    with pytest.raises(UsageError, match=r"(?s)attention of this network cannot be quantized.*0 times.*scaled_dot_product_attention"):
        run_build(_plan(class_trt_build, tmp_path / "bundle", "int8", precisions=["w8a8"]))
