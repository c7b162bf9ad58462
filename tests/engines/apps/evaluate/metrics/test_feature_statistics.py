"""Streamed moments against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics

VECTORS = 3 + np.random.default_rng(0).normal(size=(1000, 6)) @ np.random.default_rng(1).normal(size=(6, 6))


def test_one_pass_is_numpys_mean_and_covariance() -> None:
    statistics = FeatureStatistics.of(VECTORS)
    assert statistics.count == 1000
    np.testing.assert_allclose(statistics.mean, VECTORS.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(VECTORS, rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 64, 999])
def test_streaming_is_one_pass(size: int) -> None:
    streamed = FeatureStatistics.empty(6)
    for begin in range(0, len(VECTORS), size):
        streamed = streamed.add(VECTORS[begin : begin + size])
    whole = FeatureStatistics.of(VECTORS)
    assert streamed.count == whole.count
    np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(streamed.scatter, whole.scatter, rtol=0, atol=1e-12 * np.abs(whole.scatter).max())


def test_a_large_mean_does_not_eat_the_covariance() -> None:
    offset = VECTORS + 1e6
    streamed = FeatureStatistics.of(offset[:300]).merge(FeatureStatistics.of(offset[300:]))
    np.testing.assert_allclose(streamed.covariance, np.cov(VECTORS, rowvar=False), rtol=0, atol=1e-8)


def test_single_precision_vectors_are_summed_in_double() -> None:
    single = VECTORS.astype(np.float32)
    np.testing.assert_allclose(FeatureStatistics.of(single).covariance, np.cov(single.astype(np.float64), rowvar=False), rtol=1e-12)


def test_one_vector_has_no_covariance() -> None:
    assert not FeatureStatistics.of(VECTORS[:1]).covariance.any()
