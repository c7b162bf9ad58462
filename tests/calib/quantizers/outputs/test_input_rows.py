"""Rows of a layer's input against the layer itself: their products with the weights are its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.outputs.input_rows import LEAST_ROWS, MOST_ROWS, ROW_VALUES, input_rows, row_count


def _layers() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(5, 4, bias=False), torch.randn(3, 7, 5)),
        "padded": (nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.randn(2, 3, 5, 6)),
        "strided": (nn.Conv2d(3, 4, (3, 2), stride=2, dilation=(2, 1), bias=False), torch.randn(2, 3, 9, 8)),
        "grouped": (nn.Conv2d(6, 4, 3, groups=2, padding="same", bias=False), torch.randn(2, 6, 5, 5)),
        "circular": (nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular", bias=False), torch.randn(2, 4, 7)),
        "volume": (nn.Conv3d(2, 3, 3, bias=False), torch.randn(2, 2, 4, 5, 6)),
    }


def _draw(layer: Any, x: Tensor, count: int) -> Tensor:
    return input_rows(layer, x, count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(_layers()))
def test_products_of_rows_and_weights_are_outputs_of_the_layer(name: str) -> None:
    layer, x = _layers()[name]
    weight = layer.get_parameter("weight").detach()
    rows = _draw(layer, x, 400)
    per_group = weight.reshape(rows.shape[1], -1, rows.shape[2])
    found = torch.einsum("ngi,goi->ngo", rows, per_group).flatten(1)
    outputs = layer(x).detach()
    positions = (outputs if isinstance(layer, nn.Linear) else outputs.movedim(1, -1)).flatten(0, -2)
    distances = torch.cdist(found, positions, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distances.amin(dim=1), torch.zeros(400), rtol=0, atol=1e-5)
    assert len(distances.argmin(dim=1).unique()) > 0.5 * min(400, len(positions))  # drawn from everywhere


def test_rows_are_float32_and_do_not_follow_the_input() -> None:
    layer, x = nn.Linear(4, 2), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    rows = _draw(layer, x, 10)
    assert rows.dtype == torch.float32
    assert not rows.requires_grad


@pytest.mark.parametrize(
    ("layer", "rows"),
    [(nn.Linear(8, 1), MOST_ROWS), (nn.Conv2d(256, 1, 2), ROW_VALUES // 1024), (nn.Conv2d(1024, 1, 3), LEAST_ROWS)],
)
def test_longer_rows_are_fewer_within_limits(layer: nn.Module, rows: int) -> None:
    assert row_count(layer) == rows
