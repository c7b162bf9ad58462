"""The Frechet distance against closed forms, scipy's matrix square root and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import Gaussian, frechet_distance
from engines.arrays import Float64


def rotation(dimension: int, seed: int) -> Float64:
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))[0])


def vectors(seed: int, count: int = 400, dimension: int = 16) -> Float64:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=dimension) + rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension)))


def test_axes_in_common_have_a_closed_form() -> None:
    Q = rotation(3, 0)
    one = Gaussian(np.array([1.0, 2, 3]), Q @ np.diag([1.0, 4, 9]) @ Q.T)
    other = Gaussian(np.array([1.0, 0, 0]), Q @ np.diag([16.0, 4, 1]) @ Q.T)
    assert frechet_distance(one, other) == pytest.approx((4 + 9) + (1 - 4) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


def test_one_dimension_is_the_distance_of_means_and_deviations() -> None:
    one, other = Gaussian(np.array([2.0]), np.array([[9.0]])), Gaussian(np.array([-1.0]), np.array([[0.25]]))
    assert frechet_distance(one, other) == pytest.approx(9 + 2.5**2, rel=1e-12)


def test_singular_covariances_have_it_too() -> None:
    """Two planes of 50 dimensions, which share one axis."""
    Q = rotation(50, 1)
    variances = np.zeros((2, 50))
    variances[0, :2] = 4, 9
    variances[1, 1:3] = 1, 25
    one, other = (Gaussian(np.zeros(50), (Q * v) @ Q.T) for v in variances)
    assert frechet_distance(one, other) == pytest.approx(4 + (3 - 1) ** 2 + 25, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-5)


def test_it_is_symmetric() -> None:
    one, other = (FeatureStatistics.of(vectors(seed)).gaussian() for seed in (1, 2))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-10)


@pytest.mark.parametrize("count", [400, 40])
def test_scipys_matrix_square_root_gives_the_same(count: int) -> None:
    one, other = (FeatureStatistics.of(vectors(seed, count)).gaussian() for seed in (3, 4))
    root = sqrtm(one.covariance @ other.covariance)
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * np.real(root))
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_torchmetrics_gives_the_same() -> None:
    """Its images are the features themselves."""
    identity = torch.nn.Identity()
    identity.num_features = 16  # type: ignore[assignment]  # modules take numbers too
    metric = FrechetInceptionDistance(feature=identity, normalize=False).set_dtype(torch.float64)
    real, fake = vectors(5), vectors(6, count=300)
    for begin in range(0, 300, 100):
        metric.update(torch.from_numpy(fake[begin : begin + 100]), real=False)
    metric.update(torch.from_numpy(real), real=True)
    ours = frechet_distance(FeatureStatistics.of(fake).gaussian(), FeatureStatistics.of(real).gaussian())
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)
    assert ours > 1
