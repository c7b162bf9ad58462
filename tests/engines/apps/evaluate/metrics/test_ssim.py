"""Structural similarity against torchmetrics, and against loops where that one refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from engines.apps.evaluate.metrics.ssim import ssim
from engines.arrays import Float64


def pair(shape: tuple[int, ...], noise: float = 0.3) -> tuple[Float64, Float64]:
    rng = np.random.default_rng(0)
    one = np.cumsum(rng.normal(size=shape), axis=-1).clip(-1, 1)
    return one, (one + noise * rng.normal(size=shape)).clip(-1, 1)


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (2, 3, 24, 17), (2, 1, 11, 40)])
def test_torchmetrics_gives_the_same(shape: tuple[int, ...]) -> None:
    one, other = pair(shape)
    expected = structural_similarity_index_measure(torch.from_numpy(one), torch.from_numpy(other), data_range=2.0, reduction="none")
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(ssim(one, other, 2.0), expected.numpy(), rtol=1e-9)
    assert expected.max() < 0.95


def test_windows_reach_beyond_sides_shorter_than_half_of_them() -> None:
    """4 x 3, pixel by pixel, mirrored at the outermost pixels as often as it takes."""
    one, other = pair((1, 1, 4, 3))
    offsets = range(-5, 6)
    figures = []
    for row, column in np.ndindex(4, 3):
        rows, columns = ([mirrored(at + o, side) for o in offsets] for at, side in ((row, 4), (column, 3)))
        g = np.exp([-0.5 * (o / 1.5) ** 2 for o in offsets])
        weights = np.outer(g, g) / g.sum() ** 2
        x, y = one[0, 0][np.ix_(rows, columns)], other[0, 0][np.ix_(rows, columns)]
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy, cov = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum(), (weights * (x - mx) * (y - my)).sum()
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        figures.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(one, other, 2.0).item() == pytest.approx(np.mean(figures), rel=1e-9)


def mirrored(index: int, side: int) -> int:
    while not 0 <= index < side:
        index = -index if index < 0 else 2 * (side - 1) - index
    return index


@pytest.mark.parametrize("side", [1, 2, 10, 11, 12])
def test_identical_images_of_any_size_are_wholly_similar(side: int) -> None:
    one, _ = pair((2, 1, side, side))
    np.testing.assert_allclose(ssim(one, one, 2.0), 1, rtol=1e-12)
