"""Layers of a bundle, as its statistics files record them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engines.api.layer_info import ActivationScale, LayerBits, LayerInfo, WeightScales, layers_of
from engines.bundle.bundle import Bundle
from engines.errors import BundleError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

FLOAT = {"name": "first", "op": "Conv", "role": "boundary", "weight_bits": None, "activation_bits": None, "reason": "first or last layer"}
INTEGER = {
    "name": "first",
    "op": "Conv",
    "role": "boundary",
    "weight_bits": 8,
    "activation_bits": 8,
    "reason": None,
    "weight": {"channels": 4, "smallest": 0.125, "largest": 0.5},
    "input": {"scale": 0.25, "zero_point": -3},
    "output": None,
    "bit_operations": 640,
}


def write(bundle: TinyBundle, precision: str, *layers: dict[str, Any]) -> None:
    file = f"statistics/onnxruntime/{precision}.json"
    (bundle.folder / file).parent.mkdir(parents=True, exist_ok=True)
    (bundle.folder / file).write_text(json.dumps({"schema_version": 1, "steps": [], "layers": layers}))
    bundle.rehash(file)


def test_a_layer_is_told_at_every_precision_that_was_measured(own_tiny: TinyBundle) -> None:
    write(own_tiny, "w4a8", FLOAT)
    write(own_tiny, "w8a8", INTEGER | {"low_rank": 16, "learned": ["adapters"]})
    assert layers_of(Bundle.open(own_tiny.folder)) == (
        LayerInfo(
            "first",
            "Conv",
            "boundary",
            {
                "w4a8": LayerBits(None, None, "first or last layer", None, None, None, None),
                "w8a8": LayerBits(8, 8, None, WeightScales(4, 0.125, 0.5), ActivationScale(0.25, -3), None, 640, 16, ("adapters",)),
            },
        ),
    )


def test_help_is_told_in_words() -> None:
    bits = LayerBits(4, 4, None, None, None, None, None)
    assert bits.techniques == ()
    helped = replace(bits, low_rank=16, learned=("adapters", "rounding"), rotation=64)
    assert helped.techniques == ("rank 16", "rotation 64", "adapters", "rounding")


def test_damaged_records_are_refused(own_tiny: TinyBundle) -> None:
    write(own_tiny, "w4a8", FLOAT | {"weight_bits": "many"})
    with pytest.raises(BundleError, match=r"statistics are damaged\.\n  found:    .*w4a8.json: layers.0.weight_bits"):
        layers_of(Bundle.open(own_tiny.folder))


def test_precisions_with_different_layers_are_refused(own_tiny: TinyBundle) -> None:
    write(own_tiny, "w4a8", FLOAT)
    write(own_tiny, "w8a8", FLOAT | {"name": "second"})
    with pytest.raises(BundleError, match="list different layers"):
        layers_of(Bundle.open(own_tiny.folder))
