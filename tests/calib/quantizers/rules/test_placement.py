"""The placement table, and the rule of every kind of layer at every kind of precision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calib.quantizers.rules.layers import Layer, Op, Role
from calib.quantizers.rules.placement import NO_OVERRIDES, PLACEMENTS, LayerOverrides, Placement, Rule, rule
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
    assert "blocks of 64 do not divide 96 input channels" in str(found.reason)


@pytest.mark.parametrize("placement", [ORT, TRT])
@pytest.mark.parametrize("precision", ["w4a4", "w4a8", "w8a4"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_linear_layers_of_fewer_than_8_bits_have_branches(placement: Placement, precision: str, op: Op) -> None:
    def of(shape: tuple[int, ...], role: Role = "inner") -> Rule:
        layer = Layer("block.linear", op, role, shape, macs=1, source="block.linear")
        return rule(layer, Precision.parse(precision), placement, LayerOverrides(low_rank=16))

    assert of((64, 128)) == replace(rule(_layer(op), Precision.parse(precision), placement), output_bits=None, low_rank=16, branches=16)
    small = of((16, 128))
    assert (small.low_rank, small.branches) == (None, 16)  # its input is shared with layers that have branches
    assert small.reason == "no low-rank branch: one of rank 16 would cost as much as the 16 x 128 weight"
    for role in ("boundary", "embedding", "condition"):
        assert of((64, 128), role).low_rank is None


@pytest.mark.parametrize("precision", ["w8a8", "w4a16", "fp16"])
def test_precisions_without_products_of_few_bits_have_no_branches(precision: str) -> None:
    layer = Layer("block.linear", "MatMul", "inner", (64, 128), macs=1, source="block.linear")
    found = rule(layer, Precision.parse(precision), ORT, LayerOverrides(low_rank=16))
    assert found == rule(layer, Precision.parse(precision), ORT)


def test_widened_weights_have_branches_like_all_layers_of_their_precision() -> None:
    layer = Layer("block.linear", "MatMul", "inner", (64, 128), macs=1, source="block.linear")
    found = rule(layer, Precision.parse("w4a8"), ORT, LayerOverrides(keep_8bit_weights=("block.*",), low_rank=16))
    assert (found.weight_bits, found.activation_bits, found.low_rank) == (8, 8, 16)


BLOCKS = [("nvfp4", 16, ("nvfp4", "nvfp4", 4, 4)), ("nvfp4a8", 16, ("nvfp4", "e4m3", 4, 8)), ("mxfp8", 32, ("mxfp8", "mxfp8", 8, 8))]


@pytest.mark.parametrize(("precision", "size", "found"), BLOCKS)
def test_linear_layers_have_blocks_and_others_8_bit_floats(precision: str, size: int, found: tuple[str, str, int, int]) -> None:
    def of(op: Op, inputs: int, overrides: LayerOverrides = NO_OVERRIDES) -> Rule:
        return rule(Layer("block.layer", op, "inner", (8, inputs), macs=1, source="x"), Precision.parse(precision), TRT, overrides)

    for op in ("MatMul", "Gemm"):
        blocks = of(op, 3 * size)
        assert (blocks.form, blocks.activation_form, blocks.weight_bits, blocks.activation_bits) == found
        assert blocks.reason is None
    for lacking, reason in ((of("Conv", size), "a Conv takes no blocks"), (of("MatMul", size + 8), f"blocks of {size} do not divide")):
        assert (lacking.form, lacking.activation_form, lacking.weight_bits, lacking.activation_bits) == ("e4m3", "e4m3", 8, 8)
        assert str(lacking.reason).startswith("8-bit floats (E4M3) without blocks: ")
        assert reason in str(lacking.reason)
    wide = of("MatMul", size, LayerOverrides(keep_8bit_weights=("block.*",)))
    assert (wide.form, "by the plan" in str(wide.reason)) == (("mxfp8", False) if precision == "mxfp8" else ("e4m3", True))


@pytest.mark.parametrize(("precision", "form", "bits"), [("nvfp4", "nvfp4", 4), ("nvfp4a8", "nvfp4", 4), ("mxfp8", "integer", 8)])
def test_layers_of_a_prompt_have_float_activations_beside_blocks(precision: str, form: str, bits: int) -> None:
    def of(inputs: int) -> Rule:
        return rule(Layer("block.key", "MatMul", "condition", (8, inputs), macs=1, source="x"), Precision.parse(precision), TRT)

    assert (of(64).form, of(64).weight_bits, of(64).activation_bits) == (form, bits, None)
    assert (of(24).form, of(24).weight_bits, of(24).activation_bits) == ("integer", 8, None)
    assert "prompt" in str(of(24).reason)


@pytest.mark.parametrize(("precision", "weight", "activation"), [("nvfp4", 4.5, 4.5), ("nvfp4a8", 4.5, 8), ("mxfp8", 8.25, 8.25)])
def test_scales_of_blocks_count_as_bits(precision: str, weight: float, activation: float) -> None:
    found = rule(Layer("block.layer", "MatMul", "inner", (8, 64), macs=1, source="x"), Precision.parse(precision), TRT)
    assert (found.stored_weight_bits(16), found.stored_activation_bits) == (weight, activation)
    assert Precision.parse(precision).bit_operations_per_mac == weight * activation
