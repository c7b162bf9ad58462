"""Sums by block: figures with each block left out."""

from __future__ import annotations

import numpy as np

from engines.apps.evaluate.metrics.by_block import ByBlock
from engines.apps.evaluate.metrics.confidence import BLOCKS, block_edges
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics

VALUES = np.random.default_rng(0).normal(size=(107, 1))


def sums() -> ByBlock[FeatureStatistics]:
    """Each block in two pieces."""
    by_block = ByBlock(FeatureStatistics)
    for block, part in enumerate(np.split(VALUES, block_edges(107))):
        by_block.add(block, FeatureStatistics.of(part[:3]))
        by_block.add(block, FeatureStatistics.of(part[3:]))
    return by_block


def test_figure_with_each_block_left_out() -> None:
    estimate = sums().estimate(lambda moments: moments.covariance.item())
    np.testing.assert_allclose(estimate.value, VALUES.var(ddof=1), rtol=1e-12)
    edges = [0, *block_edges(107), 107]
    expected = [np.delete(VALUES, slice(edges[block], edges[block + 1])).var(ddof=1) for block in range(BLOCKS)]
    np.testing.assert_allclose(estimate.without_block, expected, rtol=1e-12)


def test_mean_of_the_blocks_own_figures() -> None:
    estimate = sums().mean(lambda moments: moments.covariance.item())
    own = np.array([part.var(ddof=1) for part in np.split(VALUES, block_edges(107))])
    np.testing.assert_allclose(estimate.value, own.mean(), rtol=1e-12)
    np.testing.assert_allclose(estimate.without_block, [np.delete(own, block).mean() for block in range(BLOCKS)], rtol=1e-12)
