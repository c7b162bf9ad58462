"""A learned block as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from calib.rounding.learned_block import BlockRecord, load_block, save_block

INPUT = ActivationQuantizer(8, signed=False, scale=float(np.float32(0.031)), zero_point=117)
RECORD = BlockRecord("block", ("block.a", "block.b"), 2.0, 1.0, ("adapters",), 3.5, 100, 0)


def _layer(name: str, source: ActivationQuantizer | None, output: ActivationQuantizer | None) -> QuantizedLayer:
    integers = torch.tensor([[1, -2], [3, 0]], dtype=torch.int8)
    quantizer = WeightQuantizer(4, torch.tensor([0.1, 0.2]))
    rule = Rule(4, None if source is None else 8, None if output is None else 8, "float")
    return QuantizedLayer(Layer(name, "Gemm", "inner", (2, 2), 4, name), rule, integers, quantizer, source, output, None)


def test_block_survives_a_round_trip(tmp_path: Path) -> None:
    nearest = {"block.a": _layer("block.a", INPUT, replace(INPUT, zero_point=3)), "block.b": _layer("block.b", None, None)}
    learned = [
        replace(nearest["block.a"], integers=nearest["block.a"].integers + 1, input=replace(INPUT, scale=float(np.float32(0.0297)))),
        replace(nearest["block.b"], integers=nearest["block.b"].integers - 1),
    ]
    save_block(tmp_path / "block.npz", RECORD, learned)
    record, found = load_block(tmp_path / "block.npz", nearest)
    assert record == RECORD
    for one, expected in zip(found, learned, strict=True):
        assert torch.equal(one.integers, expected.integers)
        assert replace(one, integers=expected.integers) == expected
