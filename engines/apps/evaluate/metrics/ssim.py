"""Structural similarity of images (Wang et al. 2004)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float64

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def ssim(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]], data_range: float) -> Float64:
    """Return [n], the mean similarity over pixels and channels of images [n, C, H, W].

    The window around every pixel is a Gaussian of 11 by 11 pixels with standard deviation 1.5. Borders are reflected, as in torchmetrics,
    so that small images have windows too; the paper's own program omits the border instead.
    """
    rows, columns = _windows(one.shape[2]), _windows(one.shape[3]).T

    def local_mean(images: Float64) -> Float64:
        return np.asarray(rows @ images @ columns)

    x, y = one.astype(np.float64), other.astype(np.float64)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mu_x, mu_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mu_x**2, local_mean(y * y) - mu_y**2
    cov = local_mean(x * y) - mu_x * mu_y
    index = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return np.asarray(index.mean(axis=(1, 2, 3)))


@cache
def _windows(side: int) -> Float64:
    """Return [side, side], one row of window weights for every pixel along a side."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    reflected = np.pad(np.eye(side), ((WINDOW // 2, WINDOW // 2), (0, 0)), mode="reflect")
    return np.asarray(sum(weight * reflected[k : k + side] for k, weight in enumerate(weights / weights.sum())))
