"""Scales against exhaustive search, and the promises that hold for every tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear, silu

from calib.quantizers import scale_search
from calib.quantizers.outputs.output_error import ReadingLayer, RowsOfGroup, error_at_readers
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer, weight_range
from calib.quantizers.scale_search import Criterion, activation_scale, weight_scale

BITS = range(2, 9)
LAYOUTS = [(False, False), (True, False), (True, True), (False, True)]
"""(signed, symmetric)"""

floats = st.floats(-1e3, 1e3, width=32)


def _weight_errors(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """[channels] squared error."""
    return (quantizer.dequantize(quantizer.integers(weight)) - weight).square().flatten(1).sum(dim=1)


def _activation_error(values: Tensor, quantizer: ActivationQuantizer) -> float:
    """Mean squared error, of values beyond either end times the square root of the number of integers."""
    error, ends = (quantizer.fake(values) - values).square(), torch.tensor([quantizer.low, quantizer.high], dtype=torch.float64)
    low, high = ((ends - quantizer.zero_point) * quantizer.scale).tolist()
    clipped = torch.relu(values.double() - high) + torch.relu(low - values.double())
    return float(error.double().mean() + (math.sqrt(2**quantizer.bits) - 1) * clipped.square().mean())


def _activation(
    values: Tensor, bits: int, signed: bool = False, symmetric: bool = False, criterion: Criterion = "mse"
) -> ActivationQuantizer:
    low, high = float(values.min()), float(values.max())
    return activation_scale(values, low, high, bits=bits, signed=signed, symmetric=symmetric, criterion=criterion)


def _random(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(500, generator=generator)
    return {
        "normal": normal,
        "silu": silu(normal),
        "heavy": normal**3,
        "positive": normal.abs() + 3,
        "negative": -normal.abs() - 3,
        "outlier": torch.cat([normal, torch.tensor([50.0])]),
    }[name]


@pytest.mark.parametrize("bits", BITS)
def test_largest_magnitude_of_a_weight_becomes_the_largest_integer(bits: int) -> None:
    weight = torch.tensor([[0.3, -2.0, 0.1], [4.0, 0.0, -1.0]])
    scale = weight_scale(weight, bits, "max").scale
    torch.testing.assert_close(scale, torch.tensor([2.0, 4.0]) / weight_range(bits)[1])


@pytest.mark.parametrize("bits", BITS)
def test_weight_search_comes_close_to_exhaustive_search(bits: int) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits))
    largest = weight.abs().amax(dim=1) / weight_range(bits)[1]
    ratios = torch.linspace(0.05, 1.6, 3000).tolist()
    best = torch.stack([_weight_errors(weight, WeightQuantizer(bits, ratio * largest)) for ratio in ratios]).amin(dim=0)
    excess = _weight_errors(weight, weight_scale(weight, bits)) / best
    assert excess.max() < 1.35
    assert excess.mean() < 1.12


@settings(max_examples=60, deadline=None)
@given(weight=st.lists(st.lists(floats, min_size=6, max_size=6), min_size=1, max_size=4), bits=st.sampled_from(BITS))
def test_weight_search_is_never_worse_than_the_largest_magnitude(weight: list[list[float]], bits: int) -> None:
    tensor = torch.tensor(weight)
    searched, largest = (_weight_errors(tensor, weight_scale(tensor, bits, criterion)) for criterion in ("mse", "max"))
    assert (searched <= largest).all()


@pytest.mark.parametrize("bits", BITS)
def test_weights_on_a_grid_are_kept_exactly(bits: int) -> None:
    top = weight_range(bits)[1]
    weight = 0.25 * torch.arange(-top, top + 1, dtype=torch.float32)[None]
    assert _weight_errors(weight, weight_scale(weight, bits)).item() == 0


def test_weight_search_clips_an_outlier_that_costs_the_others_more() -> None:
    weight = torch.cat([torch.randn(500, generator=torch.Generator().manual_seed(0)), torch.tensor([9.0])])[None]
    searched, largest = (_weight_errors(weight, weight_scale(weight, 4, criterion)).item() for criterion in ("mse", "max"))
    assert searched < 0.6 * largest


@pytest.mark.parametrize("criterion", ["mse", "max"])
@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_zeros_stays_zero_and_does_not_disturb_the_others(bits: int, criterion: Criterion) -> None:
    weight = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    others = weight_scale(weight, bits, criterion).scale
    weight[1] = 0
    quantizer = weight_scale(weight, bits, criterion)
    assert torch.isfinite(quantizer.scale).all()
    assert (quantizer.scale > 0).all()
    assert (quantizer.integers(weight)[1] == 0).all()
    torch.testing.assert_close(quantizer.scale[[0, 2]], others[[0, 2]])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [1e-30, -3.7, 5.0e4])
def test_constant_weights_keep_their_sign_and_size(bits: int, value: float) -> None:
    weight = torch.full((2, 8), value)
    quantizer = weight_scale(weight, bits)
    found = quantizer.dequantize(quantizer.integers(weight))
    torch.testing.assert_close(found, weight, rtol=0.02, atol=1e-12)


def test_large_layers_are_searched_in_chunks_of_channels_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = weight_scale(weight, 4).scale
    monkeypatch.setattr(scale_search, "_CHUNK_VALUES", 90)  # two channels
    chunks: list[int] = []
    search = scale_search._channel_scales

    def counted(flat: Tensor, *args: Any) -> Tensor:
        chunks.append(len(flat))
        return search(flat, *args)

    monkeypatch.setattr(scale_search, "_channel_scales", counted)
    torch.testing.assert_close(weight_scale(weight, 4).scale, whole, rtol=0, atol=0)
    assert chunks == [2, 2, 2, 1]


def _rows(count: int, inputs: int, groups: int = 1) -> Tensor:
    """Rows [count, groups, inputs] like those behind an activation function: correlated between neighbours, with a mean."""
    white = torch.randn(count, groups, inputs + 4, generator=torch.Generator().manual_seed(7))
    return silu(white.unfold(-1, 5, 1).sum(dim=-1))


def _output_errors(weight: Tensor, quantizer: WeightQuantizer, rows: Tensor) -> Tensor:
    """[channels] mean squared error of the outputs of a layer without groups, in the layer's own arithmetic."""
    changed = quantizer.dequantize(quantizer.integers(weight))
    return (linear(rows[:, 0], changed) - linear(rows[:, 0], weight)).square().mean(dim=0)


@pytest.mark.parametrize("bits", BITS)
def test_with_rows_the_search_comes_close_to_the_least_error_of_outputs(bits: int) -> None:
    weight, rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits)), _rows(200, 64)
    largest = weight.abs().amax(dim=1) / weight_range(bits)[1]
    ratios = torch.linspace(0.25, 1.05, 2000).tolist()
    best = torch.stack([_output_errors(weight, WeightQuantizer(bits, ratio * largest), rows) for ratio in ratios]).amin(dim=0)
    excess = _output_errors(weight, weight_scale(weight, bits, rows=rows), rows) / best
    assert excess.mean() < 1.5
    without = _output_errors(weight, weight_scale(weight, bits), rows) / best
    assert without.mean() > 1.3 * excess.mean()


@pytest.mark.parametrize("bits", [3, 4])
def test_rows_seldom_seen_are_enough_to_keep_outputs_from_shifting(bits: int) -> None:
    weight = torch.randn(64, 576, generator=torch.Generator().manual_seed(bits))
    few, many = _rows(3000, 576)[:64], _rows(3000, 576)[1000:]

    def shift(quantizer: WeightQuantizer) -> float:
        changed = quantizer.dequantize(quantizer.integers(weight)) - weight
        return float(linear(many[:, 0], changed).mean(dim=0).square().mean())

    assert shift(weight_scale(weight, bits, rows=few)) < 0.25 * shift(weight_scale(weight, bits))


def test_a_single_row_does_not_spoil_the_weights_that_it_does_not_see() -> None:
    weight, row = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 64)
    row[..., 0] = 1.0
    least = _weight_errors(weight, weight_scale(weight, 4))
    assert (_weight_errors(weight, weight_scale(weight, 4, rows=row)) / least).mean() < 2


def test_groups_of_channels_are_searched_with_their_own_rows() -> None:
    weight, rows = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)), _rows(50, 20, groups=3)
    parts = [weight_scale(weight[2 * g : 2 * g + 2], 3, rows=rows[:, g : g + 1]).scale for g in range(3)]
    torch.testing.assert_close(weight_scale(weight, 3, rows=rows).scale, torch.cat(parts), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["normal", "silu", "heavy", "positive", "negative", "outlier"])
@pytest.mark.parametrize("bits", BITS)
def test_symmetric_activation_search_comes_close_to_exhaustive_search(bits: int, name: str) -> None:
    values = _random(name)
    largest = float(values.abs().max()) / (2 ** (bits - 1) - 1)
    ratios = np.linspace(0.02, 1, 300)
    best = min(_activation_error(values, ActivationQuantizer(bits, True, float(np.float32(r * largest)), 0)) for r in ratios)
    assert _activation_error(values, _activation(values, bits, signed=True, symmetric=True)) <= 1.2 * best


@pytest.mark.parametrize("name", ["normal", "silu", "heavy", "positive", "negative", "outlier"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_activation_search_comes_close_to_exhaustive_search(bits: int, name: str) -> None:
    values, levels = _random(name), 2**bits - 1
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    best = np.inf
    for zero_point in {round(levels * share) for share in np.linspace(0, 1, 25)}:
        for ratio in np.linspace(0.04, 1, 40):
            scale = float(np.float32(ratio * (high - low) / levels))
            best = min(best, _activation_error(values, ActivationQuantizer(bits, False, scale, zero_point)))
    assert _activation_error(values, _activation(values, bits)) <= 1.2 * best


@pytest.mark.parametrize(("signed", "symmetric"), LAYOUTS)
@pytest.mark.parametrize("bits", [4, 8])
def test_activation_search_with_readers_comes_close_to_the_least_error_of_their_outputs(bits: int, signed: bool, symmetric: bool) -> None:
    rows = _rows(200, 32)
    values, readers = rows.flatten(), [ReadingLayer(rows, torch.randn(8, 32, generator=torch.Generator().manual_seed(bits)))]
    low, high = float(values.min()), float(values.max())

    def error(quantizer: ActivationQuantizer) -> float:
        return error_at_readers(readers, quantizer, math.sqrt(2**bits))

    zero = 0 if signed else 2 ** (bits - 1)
    if symmetric:
        tried = [ActivationQuantizer(bits, signed, high / (2 ** (bits - 1) - 1) * ratio, zero) for ratio in np.linspace(0.1, 1, 100)]
    else:
        lowest, steps = zero - 2 ** (bits - 1), 2**bits - 1
        scales = [(high - low) / steps * ratio for ratio in np.linspace(0.1, 1, 40)]
        zeros = {lowest + round(steps * share) for share in np.linspace(0, 0.3, 20)}
        tried = [ActivationQuantizer(bits, signed, scale, point) for scale in scales for point in zeros]
    found = activation_scale(values, low, high, bits=bits, signed=signed, symmetric=symmetric, readers=readers)
    assert error(found) <= 1.3 * min(map(error, tried))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=30), bits=st.sampled_from(BITS), layout=st.sampled_from(LAYOUTS))
def test_every_activation_quantizer_keeps_its_promises(values: list[float], bits: int, layout: tuple[bool, bool]) -> None:
    tensor = torch.tensor(values)
    searched, largest = (_activation(tensor, bits, *layout, criterion=criterion) for criterion in ("mse", "max"))
    assert _activation_error(tensor, searched) <= _activation_error(tensor, largest)
    for quantizer in (searched, largest):
        assert np.isfinite(quantizer.scale)
        assert quantizer.scale == np.float32(quantizer.scale) > 0
        assert quantizer.low <= quantizer.zero_point <= quantizer.high
        assert quantizer.fake(torch.zeros(1)).item() == 0  # zero padding and ReLU's zeros are exact
        if layout[1]:
            assert quantizer.zero_point == (0 if layout[0] else 2 ** (bits - 1))


@pytest.mark.parametrize(("signed", "symmetric"), LAYOUTS)
@pytest.mark.parametrize("bits", BITS)
def test_whole_range_is_within_half_a_step_of_every_value(bits: int, signed: bool, symmetric: bool) -> None:
    values = torch.linspace(-1.3, 4.1, 1001)
    quantizer = _activation(values, bits, signed, symmetric, criterion="max")
    error = (quantizer.fake(values) - values).abs().max().item()
    rounded_zero_point = 0 if symmetric else 0.5  # the grid may be shifted by so many steps against the range
    assert error <= (0.5 + rounded_zero_point) * quantizer.scale * 1.0001


def test_values_of_one_sign_use_all_integers() -> None:
    positive = _activation(torch.linspace(0, 2.55, 256), 8, criterion="max")
    assert positive.zero_point == 0
    assert positive.scale == pytest.approx(0.01)
    negative = _activation(torch.linspace(-2.55, 0, 256), 8, criterion="max")
    assert negative.zero_point == 255
    assert negative.scale == pytest.approx(0.01)
    assert _activation(torch.linspace(0, 2.55, 256), 8, signed=True, criterion="max").zero_point == -128


@pytest.mark.parametrize(("signed", "symmetric"), LAYOUTS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 2.5, -7.0])
def test_a_constant_tensor_is_kept(bits: int, signed: bool, symmetric: bool, value: float) -> None:
    values = torch.full((20,), value)
    torch.testing.assert_close(_activation(values, bits, signed, symmetric).fake(values), values, rtol=0.02, atol=0)


def test_range_that_the_sample_missed_is_kept_where_asked_for() -> None:
    sample = torch.linspace(-1, 1, 100)
    quantizer = activation_scale(sample, -4.0, 4.0, bits=8, signed=True, symmetric=True, criterion="max")
    assert quantizer.scale == pytest.approx(4 / 127)


@pytest.mark.parametrize(("signed", "symmetric"), LAYOUTS)
def test_more_bits_never_make_it_worse(signed: bool, symmetric: bool) -> None:
    values = _random("silu")
    errors = [_activation_error(values, _activation(values, bits, signed, symmetric)) for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


def test_no_range_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[ActivationQuantizer] = []
    error = scale_search._error

    def counting(values: Tensor, readers: Sequence[ReadingLayer], quantizer: ActivationQuantizer) -> float:
        measured.append(quantizer)
        return error(values, readers, quantizer)

    monkeypatch.setattr(scale_search, "_error", counting)
    _activation(_random("normal"), bits=8)
    assert 0 < len(measured) == len(set(measured)) < 3 * 2 * 21  # radii, ends, candidates


def _correlated(channels: int, inputs: int) -> tuple[Tensor, Tensor]:
    """A weight, and rows [count, 1, inputs] of inputs that depend on few causes, so that errors of different inputs add up."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, inputs, generator=generator) ** 3
    rows = torch.randn(200, 3, generator=generator) @ torch.randn(3, inputs, generator=generator)
    return weight, (rows + 0.1 * torch.randn(200, inputs, generator=generator))[:, None]


@pytest.mark.parametrize("criterion", ["mse", "max"])
def test_group_of_inputs_without_rows_has_the_scale_of_its_own_weights(criterion: Criterion) -> None:
    weight, _ = _correlated(5, 12)
    found = weight_scale(weight, 4, criterion, group=4)
    assert found.scale.shape == (5, 3)
    for number in range(3):
        own = slice(4 * number, 4 * number + 4)
        assert torch.equal(found.scale[:, number], weight_scale(weight[:, own], 4, criterion).scale)
        alone = WeightQuantizer(4, found.scale[:, number])
        assert torch.equal(found.integers(weight)[:, own], alone.integers(weight[:, own]))
    assert (_weight_errors(weight, found) <= _weight_errors(weight, weight_scale(weight, 4, criterion))).all()


def test_groups_make_no_output_worse_than_the_scale_of_its_channel_and_most_better() -> None:
    weight, rows = _correlated(40, 96)
    changes = []
    for group in (None, 32):
        found = weight_scale(weight, 4, "mse", rows, group=group)
        changes.append(found.dequantize(found.integers(weight)) - weight)
    channel, groups = (RowsOfGroup(rows[:, 0]).error(change) for change in changes)
    assert (groups <= channel * 1.001).all()
    assert float(groups.sum()) < 0.7 * float(channel.sum())
