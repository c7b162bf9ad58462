"""Learned rounding against the best of all roundings, found by trying them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer, weight_range
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from calib.quantizers.scale_search import weight_scale
from calib.rounding.adaround import SoftRounding
from calib.rounding.block_fit import BlockFitSettings, BlockTask, fit
from calib.rounding.block_rows import BlockNetworks, BlockRows, collect
from calib.rounding.blocks import Block
from calib.rounding.row_store import RowStore

CPU = torch.device("cpu")
SETTINGS = BlockFitSettings(iterations=150, batch_size=32, activation_scales=False, device=CPU)
WIDTH, OUT, SAMPLES = 8, 16, 256
ROWS = np.arange(SAMPLES, dtype=np.int64)
BITS = 3


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, OUT).requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    """Strongly correlated inputs, so that errors of weights can make up for one another."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 2, generator=generator) @ torch.randn(2, WIDTH, generator=generator) + 0.3 * torch.randn(
        SAMPLES, WIDTH, generator=generator
    )


@pytest.fixture
def rows(linear: nn.Linear, x: Tensor, tmp_path: Path) -> BlockRows:
    with RowStore(tmp_path / "rows", 10**6) as store:
        blocks = [Block("", ("",), (True,))]
        networks = BlockNetworks.of(linear, linear, lambda network, inputs: network(*inputs), blocks, (x,), store)
        return collect(blocks, networks, (x,), 64, CPU, store)


def _nearest(linear: nn.Linear, rule: Rule, source: ActivationQuantizer | None = None) -> QuantizedLayer:
    quantizer = weight_scale(linear.weight, BITS)
    layer = Layer("fc", "Gemm", "inner", (OUT, WIDTH), OUT * WIDTH, source="fc")
    return QuantizedLayer(layer, rule, quantizer.integers(linear.weight), quantizer, source, None, linear.bias)


def _fit(linear: nn.Linear, layer: QuantizedLayer, rows: BlockRows, settings: BlockFitSettings = SETTINGS, seed: int = 0) -> QuantizedLayer:
    task = BlockTask.of(linear, {"": layer}, (), rows)
    return fit(task, SoftRounding, ROWS, _output_error(linear, layer, rows), settings, torch.Generator().manual_seed(seed)).layers[""]


def _output_error(linear: nn.Linear, layer: QuantizedLayer, rows: BlockRows) -> float:
    return BlockTask.of(linear, {"": layer}, (), rows).error(ROWS, SETTINGS)


def _error(weight: Tensor, linear: nn.Linear, x: Tensor) -> Tensor:
    """[channels] mean squared error of the output."""
    return (x @ (weight - linear.weight).T).square().mean(dim=0)


def _best_error(linear: nn.Linear, x: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """[channels] least error of all 2^WIDTH ways to round a channel up or down."""
    floor = torch.floor(linear.weight / quantizer.scale[:, None])
    ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=WIDTH)))
    tried = [(floor + up).clamp(*weight_range(BITS)) * quantizer.scale[:, None] for up in ups]
    return torch.stack([_error(weight, linear, x) for weight in tried]).amin(dim=0)


def test_learned_rounding_approaches_the_best_of_all_roundings(linear: nn.Linear, x: Tensor, rows: BlockRows) -> None:
    nearest = _nearest(linear, Rule(BITS, None, None, "float"))
    learned = _fit(linear, nearest, rows)
    found, start = (_error(layer.weight.dequantize(layer.integers), linear, x).sum() for layer in (learned, nearest))
    best = _best_error(linear, x, nearest.weight).sum()
    assert best < 0.3 * start
    assert found < start - 0.6 * (start - best)
    assert _output_error(linear, learned, rows) == pytest.approx(float(found) / OUT, rel=1e-4)


def test_every_weight_is_rounded_up_or_down_with_the_scale_of_the_search(linear: nn.Linear, rows: BlockRows) -> None:
    nearest = _nearest(linear, Rule(BITS, None, None, "float"))
    learned = _fit(linear, nearest, rows)
    ratio = (linear.weight / nearest.weight.scale[:, None]).clamp(*weight_range(BITS))
    assert ((learned.integers - ratio).abs() < 1).all()
    assert (learned.integers - nearest.integers).abs().max() == 1
    assert learned.weight is nearest.weight


def test_activation_scales_learn_where_asked(linear: nn.Linear, rows: BlockRows) -> None:
    coarse = ActivationQuantizer(4, signed=True, scale=1.0, zero_point=0)
    nearest = _nearest(linear, Rule(BITS, 4, None, "float"), coarse)
    fixed = _fit(linear, nearest, rows)
    scaled = _fit(linear, nearest, rows, replace(SETTINGS, activation_scales=True))
    assert fixed.input == coarse
    assert scaled.input is not None
    assert scaled.input.scale != coarse.scale
    errors = [_output_error(linear, layer, rows) for layer in (scaled, fixed, nearest)]
    assert errors == sorted(errors)


def test_module_is_left_as_it_was(linear: nn.Linear, x: Tensor, rows: BlockRows) -> None:
    before = linear(x)
    _fit(linear, _nearest(linear, Rule(BITS, 4, None, "float"), ActivationQuantizer(4, True, 1.0, 0)), rows)
    assert torch.equal(linear(x), before)
    assert not linear._forward_pre_hooks
