"""Intervals: the jackknife where its answer is known, and where only many repetitions tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engines.apps.evaluate.metrics.by_block import ByBlock
from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate, block_edges, student_t_975, summarize
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import Gaussian, frechet_distance
from engines.arrays import Float64


@pytest.mark.parametrize("degrees", [9, 18, 27, 90, 900])
def test_quantile_of_students_t(degrees: int) -> None:
    assert student_t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


def test_interval_of_a_mean_is_the_textbooks() -> None:
    """Ten blocks of one sample each are ten samples."""
    values = np.random.default_rng(0).normal(size=BLOCKS)
    summary = summarize([Estimate.mean_of_blocks(values, np.ones(BLOCKS))])
    expected = stats.t.interval(0.95, BLOCKS - 1, loc=values.mean(), scale=stats.sem(values))
    assert summary.mean == pytest.approx(values.mean(), rel=1e-12)
    assert summary.interval == pytest.approx(expected, rel=1e-4)
    assert summary.deviation is None


def test_seeds_narrow_the_interval_and_have_a_deviation() -> None:
    estimate = Estimate.mean_of_blocks(np.arange(10.0), np.ones(BLOCKS))
    shifted = Estimate(estimate.value + 2, estimate.without_block + 2)
    one, two = summarize([estimate]), summarize([estimate, shifted])
    assert two.values == (4.5, 6.5)
    assert two.mean == 5.5
    assert two.deviation == pytest.approx(np.sqrt(2))
    ratio = (two.interval[1] - two.mean) / (one.interval[1] - one.mean)
    assert ratio == pytest.approx(stats.t.ppf(0.975, 18) / stats.t.ppf(0.975, 9) / np.sqrt(2), rel=1e-4)


def test_paired_difference_drops_what_is_shared() -> None:
    shared, own = np.random.default_rng(1).normal(size=(2, BLOCKS))
    ones = np.ones(BLOCKS)
    first, second = Estimate.mean_of_blocks(5 * shared, ones), Estimate.mean_of_blocks(5 * shared + 0.1 * own, ones)
    difference = summarize([second - first])
    assert difference.mean == pytest.approx(0.1 * own.mean())
    assert difference.interval[1] - difference.mean == pytest.approx(0.1 * stats.sem(own) * stats.t.ppf(0.975, 9), rel=1e-4)


@pytest.mark.parametrize("num", [50, 51, 99, 1000])
def test_blocks_are_consecutive_and_of_nearly_one_size(num: int) -> None:
    sizes = np.diff([0, *block_edges(num), num])
    assert len(sizes) == BLOCKS
    assert sizes.max() - sizes.min() <= 1


def distance(vectors: Float64, reference: Gaussian) -> Estimate:
    sums = ByBlock[FeatureStatistics]()
    for block, part in enumerate(np.split(vectors, block_edges(len(vectors)))):
        sums.add(block, FeatureStatistics.of(part))
    return sums.estimate(lambda moments: frechet_distance(moments.gaussian(), reference))


def test_intervals_of_paired_frechet_distances_hold_the_truth() -> None:
    """150 experiments: a chain and its disturbed twin. Of 95 % intervals at least 88 % must hold the mean over all experiments."""
    reference = Gaussian(np.zeros(4), np.eye(4))
    summaries = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        first = 1.1 * rng.normal(size=(400, 4)) + 0.2
        second = first * 1.05 + 0.1 + 0.2 * rng.normal(size=first.shape)
        summaries.append(summarize([distance(second, reference) - distance(first, reference)]))
    truth = np.mean([summary.mean for summary in summaries])
    held = np.mean([summary.interval[0] <= truth <= summary.interval[1] for summary in summaries])
    assert 0.88 <= held <= 0.99
    assert np.mean([summary.interval[0] > 0 for summary in summaries]) > 0.95
