"""Names of precisions, their bits and their order of cost."""

from __future__ import annotations

import re

import pytest

from calib.quantizers.rules.precision import GRAMMAR, PATTERN, Precision, all_names, proposal
from engines.errors import UsageError


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits", "bit_operations"),
    [
        ("w8a8", 8, 8, 64),
        ("w4a8", 4, 8, 32),
        ("w4a4", 4, 4, 16),
        ("w2a4", 2, 4, 8),
        ("w3a7", 3, 7, 21),
        ("w4a16", 4, 16, 64),
        ("fp8", 8, 8, 64),
        ("nvfp4", 4, 4, 4.5 * 4.5),
        ("nvfp4a8", 4, 8, 4.5 * 8),
        ("mxfp8", 8, 8, 8.25 * 8.25),
        ("fp16", None, None, 256),
        ("fp32", None, None, 1024),
    ],
)
def test_name_gives_bits_and_cost(name: str, weight_bits: int | None, activation_bits: int | None, bit_operations: float) -> None:
    precision = Precision.parse(name)
    assert (precision.name, precision.weight_bits, precision.activation_bits) == (name, weight_bits, activation_bits)
    forms = {"fp8": ("e4m3", "e4m3"), "nvfp4": ("nvfp4", "nvfp4"), "nvfp4a8": ("nvfp4", "e4m3"), "mxfp8": ("mxfp8", "mxfp8")}
    assert (precision.form, precision.activation_form) == forms.get(name, ("integer", "integer"))
    assert precision.bit_operations_per_mac == bit_operations


def test_saving_against_full_precision_is_the_papers() -> None:
    """W4A4 costs 1/64 and W4A8 1/32 of FP32: the ceilings below which the paper's 21.25x and 19.96x of whole networks lie."""
    full = Precision.parse("fp32").bit_operations_per_mac
    assert [full // Precision.parse(name).bit_operations_per_mac for name in ("w4a4", "w4a8", "w8a8")] == [64, 32, 16]


def test_grammar_has_exactly_these_names() -> None:
    expected = {f"w{w}a{a}" for w in range(2, 9) for a in (4, 5, 6, 7, 8, 16)} | {"fp8", "mxfp8", "nvfp4", "nvfp4a8", "fp16", "fp32"}
    assert set(all_names()) == expected
    assert len(all_names()) == len(expected)
    assert {Precision.parse(name).name for name in all_names()} == expected


def test_pattern_of_the_schema_agrees_with_the_names() -> None:
    candidates = {f"w{w}a{a}" for w in range(12) for a in range(20)} | {
        "fp4",
        "fp8",
        "fp16",
        "fp32",
        "fp64",
        "nvfp4",
        "nvfp4a8",
        "nvfp8",
        "mxfp8",
        "w8",
        "a8",
        "",
        "xw8a8",
        "w8a8x",
    }
    assert {name for name in candidates if re.search(PATTERN, name)} == set(all_names())


def test_cost_goes_up_in_bit_operations_and_breaks_ties_by_weights() -> None:
    shuffled = ["fp32", "w8a8", "fp8", "w8a4", "w4a16", "fp16", "w4a4", "w8a16", "w4a8"]
    ordered = sorted(map(Precision.parse, shuffled), key=lambda precision: precision.cost_key)
    assert [precision.name for precision in ordered] == ["w4a4", "w4a8", "w8a4", "w4a16", "fp8", "w8a8", "w8a16", "fp16", "fp32"]


def test_no_two_precisions_share_a_place_in_the_order() -> None:
    assert len({Precision.parse(name).cost_key for name in all_names()}) == len(all_names())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("w9a8", "w8a8"),
        ("w1a8", "w2a8"),
        ("w4a3", "w4a4"),
        ("w4a32", "w4a16"),
        ("W8A8", "w8a8"),
        (" w8a8\n", "w8a8"),
        ("w8a8\n", "w8a8"),
        ("w08a8", "w8a8"),
        ("bf16", "fp16"),
        ("float32", "fp32"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest_and_the_grammar(name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        Precision.parse(name)
    message = str(caught.value)
    assert f'Unknown precision "{name}".' in message
    assert f"found:    {name}" in message
    assert f"expected: {GRAMMAR}" in message
    assert f'mend:     did you mean "{nearest}"?' in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["w99a99", "W0A0", "w4", "fp64"])
def test_what_is_proposed_is_valid(name: str) -> None:
    assert proposal(name) in [f'did you mean "{known}"?' for known in all_names()]


@pytest.mark.parametrize("name", ["", "???", "mixed"])
def test_nothing_is_proposed_for_what_resembles_no_name(name: str) -> None:
    assert proposal(name) is None
