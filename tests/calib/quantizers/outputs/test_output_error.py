"""Errors at the outputs of layers against the layers themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from calib.quantizers.outputs.input_rows import input_rows
from calib.quantizers.outputs.output_error import SHRINKAGE, ReadingLayer, RowsOfGroup, error_at_readers
from calib.quantizers.quantizers import ActivationQuantizer

COARSE = ActivationQuantizer(4, signed=False, scale=0.25, zero_point=4)
"""Values from -1 to 2.75."""


def _rows(count: int, inputs: int, groups: int = 1) -> Tensor:
    return silu(2 * torch.randn(count, groups, inputs, generator=torch.Generator().manual_seed(1)))


def test_error_of_weights_is_that_of_the_outputs_but_for_the_shrinkage() -> None:
    torch.manual_seed(0)
    weight, change, rows = torch.randn(3, 8), 0.1 * torch.randn(3, 8), _rows(50, 8)[:, 0]
    measured = (linear(rows, weight + change) - linear(rows, weight)).square().mean(dim=0)
    independent = rows.square().mean() * change.square().sum(dim=1)
    expected = (1 - SHRINKAGE) * measured + SHRINKAGE * independent
    torch.testing.assert_close(RowsOfGroup(rows).error(change), expected, rtol=1e-4, atol=0)


def test_error_of_weights_that_read_inputs_with_a_mean_depends_on_the_signs_of_the_changes() -> None:
    rows = 1 + 0.1 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    error = RowsOfGroup(rows).error(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    assert error[0] > 20 * error[1]


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3, bias=False), nn.Conv1d(6, 4, 2, groups=2)])
def test_error_of_activations_is_that_of_the_layer_relative_to_its_variance(layer: nn.Linear | nn.Conv2d | nn.Conv1d) -> None:
    spatial = {nn.Linear: (), nn.Conv2d: (4, 5), nn.Conv1d: (7,)}[type(layer)]
    x = silu(2 * torch.randn(4000, 6, *spatial, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        outputs, quantized = layer(x), layer(COARSE.fake(x))
    expected = (quantized - outputs).square().mean() / outputs.movedim(1, -1).flatten(0, -2).var(dim=0).mean()
    rows = input_rows(layer, x, 40_000, torch.Generator().manual_seed(3))
    assert ReadingLayer(rows, layer.weight).error(COARSE, clipping_weight=1.0) == pytest.approx(float(expected), rel=0.05)


def test_clipping_errors_count_as_often_as_they_are_weighted() -> None:
    weight, rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), _rows(300, 6)
    outputs = linear(rows[:, 0], weight)
    clipped = linear(rows[:, 0].clamp(-1, 2.75), weight) - outputs
    share = float(clipped.square().mean() / outputs.var(dim=0, correction=0).mean())
    once, thrice = (ReadingLayer(rows, weight).error(COARSE, clipping_weight) for clipping_weight in (1.0, 3.0))
    assert share > 0.01
    assert thrice - once == pytest.approx(2 * share, rel=1e-4)


def test_layers_that_read_one_tensor_count_alike_whatever_the_size_of_their_weights() -> None:
    rows, weight = _rows(100, 6), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    alone = ReadingLayer(rows, weight).error(COARSE, 4.0)
    both = error_at_readers([ReadingLayer(rows, weight), ReadingLayer(rows, 100 * weight)], COARSE, 4.0)
    assert both == pytest.approx(2 * alone, rel=1e-4)


def test_a_layer_whose_output_is_constant_has_no_error() -> None:
    assert ReadingLayer(torch.zeros(10, 1, 6), torch.ones(4, 6)).error(COARSE, 4.0) == 0
