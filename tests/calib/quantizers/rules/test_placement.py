"""The placement table, and the rule of every kind of layer at every kind of precision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calib.quantizers.rules.layers import Layer, Op, Role
from calib.quantizers.rules.placement import PLACEMENTS, LayerOverrides, Placement, Rule, rule
from calib.quantizers.rules.precision import Precision

ORT, TRT = PLACEMENTS["onnxruntime"], PLACEMENTS["tensorrt"]


def _layer(op: Op = "Conv", role: Role = "inner", name: str = "block.conv") -> Layer:
    return Layer(name, op, role, (8, 4, 3, 3), macs=1, source=name)


def test_weights_of_a_layer_are_the_product_of_its_shape() -> None:
    assert _layer().weights == 8 * 4 * 3 * 3


def test_placements_are_named_after_themselves() -> None:
    assert {name: placement.name for name, placement in PLACEMENTS.items()} == {name: name for name in PLACEMENTS}


@pytest.mark.parametrize(("op", "output_bits", "bias"), [("Conv", 8, "int32"), ("Gemm", 8, "int32"), ("MatMul", None, "float")])
def test_onnx_runtime_fuses_convolutions_only_with_a_quantized_output(op: Op, output_bits: int | None, bias: str) -> None:
    found = rule(_layer(op), Precision.parse("w4a8"), ORT)
    assert (found.weight_bits, found.activation_bits, found.output_bits, found.bias, found.reason) == (4, 8, output_bits, bias, None)


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize(("name", "weight_bits", "activation_bits"), [("w8a8", 8, 8), ("w4a4", 4, 4), ("w4a6", 4, 6)])
def test_tensorrt_quantizes_inputs_alone_and_adds_float_biases(op: Op, name: str, weight_bits: int, activation_bits: int) -> None:
    assert rule(_layer(op), Precision.parse(name), TRT) == Rule(weight_bits, activation_bits, None, "float")


def test_tensorrt_has_no_zero_points() -> None:
    assert (TRT.signed, TRT.symmetric, ORT.symmetric) == (True, True, False)


@pytest.mark.parametrize(("name", "weight_bits", "activation_bits"), [("w8a8", 8, 8), ("w3a6", 3, 6), ("w4a4", 4, 4)])
def test_inner_layers_get_the_bits_of_the_precision_and_outputs_those_of_the_container(
    name: str, weight_bits: int, activation_bits: int
) -> None:
    assert rule(_layer(), Precision.parse(name), ORT) == Rule(weight_bits, activation_bits, 8, "int32")


@pytest.mark.parametrize("name", ["w8a8", "w4a4", "w2a8", "w4a16"])
@pytest.mark.parametrize(("role", "word"), [("boundary", "first or last"), ("embedding", "embedding branch")])
def test_boundary_and_embedding_have_8_bit_weights_and_float_activations_whatever_the_precision(role: Role, word: str, name: str) -> None:
    found = rule(_layer(role=role), Precision.parse(name), ORT)
    assert (found.weight_bits, found.activation_bits, found.output_bits, found.bias) == (8, None, None, "float")
    assert word in str(found.reason)


def test_sixteen_activation_bits_are_float_activations() -> None:
    found = rule(_layer(), Precision.parse("w4a16"), ORT)
    assert found == Rule(4, None, None, "float", "precision w4a16: weights only")


@pytest.mark.parametrize("name", ["fp32", "fp16"])
@pytest.mark.parametrize("role", ["inner", "boundary", "embedding"])
def test_float_precisions_quantize_nothing(role: Role, name: str) -> None:
    assert rule(_layer(role=role), Precision.parse(name), ORT) == Rule(None, None, None, "float", f"precision {name}")


@pytest.mark.parametrize(
    ("precision", "bits", "reason"),
    [
        ("w4a8", (8, 8), "8-bit weights by the plan (block.*)"),
        ("w4a4", (8, 4), "8-bit weights by the plan (block.*)"),
        ("w4a16", (8, None), "8-bit weights by the plan (block.*)"),
        ("w8a8", (8, 8), None),
    ],
)
def test_weights_that_the_plan_names_have_eight_bits(precision: str, bits: tuple[int, int | None], reason: str | None) -> None:
    found = rule(_layer(), Precision.parse(precision), ORT, LayerOverrides(keep_8bit_weights=("other", "block.*")))
    assert ((found.weight_bits, found.activation_bits), found.reason) == (bits, reason)
    assert (
        rule(_layer(), Precision.parse(precision), ORT, LayerOverrides(keep_8bit_weights=("other",))).reason
        != "8-bit weights by the plan (other)"
    )


@pytest.mark.parametrize(
    ("pattern", "kept"), [("block.*", True), ("block.conv", True), ("*.conv", True), ("BLOCK.*", False), ("block", False), ("conv", False)]
)
def test_layers_that_the_plan_names_stay_in_float_with_the_pattern_as_the_reason(pattern: str, kept: bool) -> None:
    found = rule(_layer(), Precision.parse("w8a8"), ORT, LayerOverrides(keep_float=("other", pattern)))
    assert (found.weight_bits is None) is kept
    if kept:
        assert found == Rule(None, None, None, "float", f"kept in float by the plan ({pattern})")


@pytest.mark.parametrize("placement", [ORT, TRT], ids=["onnxruntime", "tensorrt"])
@pytest.mark.parametrize(("name", "weight_bits"), [("w8a8", 8), ("w4a4", 4), ("w3a8", 3)])
def test_layers_that_read_a_prompt_have_the_precisions_weights_and_float_activations(
    name: str, weight_bits: int, placement: Placement
) -> None:
    layer, precision = _layer("MatMul", "condition"), Precision.parse(name)
    found = rule(layer, precision, placement)
    assert (found.weight_bits, found.activation_bits, found.output_bits, found.bias) == (weight_bits, None, None, "float")
    assert str(found.reason).startswith("prompt")
    in_integers = rule(layer, precision, replace(placement, condition="quantized"))
    assert in_integers == rule(_layer("MatMul"), precision, placement)


def test_both_reasons_are_given_where_the_plan_names_a_layer_that_reads_a_prompt() -> None:
    found = rule(_layer("MatMul", "condition"), Precision.parse("w4a8"), ORT, LayerOverrides(keep_8bit_weights=("block.*",)))
    assert (found.weight_bits, found.activation_bits) == (8, None)
    assert str(found.reason).startswith("8-bit weights by the plan (block.*); prompt")


@pytest.mark.parametrize("placement", [ORT, TRT])
@pytest.mark.parametrize(
    ("precision", "op", "group"),
    [("w4a16", "MatMul", 64), ("w3a16", "Gemm", 64), ("w4a8", "MatMul", None), ("w5a16", "MatMul", None), ("w4a16", "Conv", None)],
)
def test_packed_linear_weights_of_float_activations_have_groups(placement: Placement, precision: str, op: Op, group: int | None) -> None:
    layer = Layer("block.linear", op, "inner", (8, 128), macs=1, source="block.linear")
    assert rule(layer, Precision.parse(precision), placement, LayerOverrides(weight_group=64)).group == group
    assert rule(layer, Precision.parse(precision), placement).group is None


def test_groups_that_do_not_divide_the_input_channels_leave_the_layer_as_it_is() -> None:
    layer = Layer("block.linear", "MatMul", "condition", (8, 96), macs=1, source="block.linear")
    found = rule(layer, Precision.parse("w4a8"), ORT, LayerOverrides(weight_group=64))
    assert (found.group, found.weight_bits, found.activation_bits) == (None, 4, None)
    assert "prompt or other condition" in str(found.reason)
    assert "groups of 64 do not divide 96 input channels" in str(found.reason)
