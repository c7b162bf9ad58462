"""Intervals: the jackknife where its answer is known, and where only many repetitions tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from engines.apps.evaluate.metrics.by_block import ByBlock
from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate, Summary, block_edges, student_t_975, summarize
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import Gaussian, frechet_distance
from engines.apps.evaluate.metrics.paired import PairedSums, median_psnr, pooled_psnr
from engines.arrays import Float64


def ends(summary: Summary) -> tuple[float, float]:
    assert summary.interval is not None
    return summary.interval


def share_that_holds(truth: float, summaries: Sequence[Summary]) -> float:
    return float(np.mean([low <= truth <= high for low, high in map(ends, summaries)]))


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
    ratio = (ends(two)[1] - two.mean) / (ends(one)[1] - one.mean)
    assert ratio == pytest.approx(stats.t.ppf(0.975, 18) / stats.t.ppf(0.975, 9) / np.sqrt(2), rel=1e-4)


def test_paired_difference_drops_what_is_shared() -> None:
    shared, own = np.random.default_rng(1).normal(size=(2, BLOCKS))
    ones = np.ones(BLOCKS)
    first, second = Estimate.mean_of_blocks(5 * shared, ones), Estimate.mean_of_blocks(5 * shared + 0.1 * own, ones)
    difference = summarize([second - first])
    assert difference.mean == pytest.approx(0.1 * own.mean())
    assert ends(difference)[1] - difference.mean == pytest.approx(0.1 * stats.sem(own) * stats.t.ppf(0.975, 9), rel=1e-4)


@pytest.mark.parametrize("num", [50, 51, 99, 1000])
def test_blocks_are_consecutive_and_of_nearly_one_size(num: int) -> None:
    sizes = np.diff([0, *block_edges(num), num])
    assert len(sizes) == BLOCKS
    assert sizes.max() - sizes.min() <= 1


def distance(vectors: Float64, reference: Gaussian) -> Estimate:
    sums = ByBlock(FeatureStatistics)
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
    truth = float(np.mean([summary.mean for summary in summaries]))
    held = share_that_holds(truth, summaries)
    assert 0.88 <= held <= 0.99
    assert np.mean([ends(summary)[0] > 0 for summary in summaries]) > 0.95


@pytest.mark.parametrize(("figure", "truth"), [(pooled_psnr, 26.0206), (median_psnr, 27.6126)])
def test_intervals_of_psnr_hold_the_truth(figure: Callable[[Float64], float], truth: float) -> None:
    """300 experiments: the errors of images are exponential with mean 0.01, so their median is 0.01 ln 2.

    Of 1,500 experiments, the intervals of medians of 300 images held the truth in 91 %, those of pooled PSNR in 95 %.
    """
    summaries = []
    for seed in range(300):
        sums, errors = ByBlock(PairedSums), np.random.default_rng(seed).exponential(0.01, size=300)
        for block, part in enumerate(np.split(errors, BLOCKS)):
            sums.add(block, PairedSums(part, 0.0, 0.0, 1.0))
        summaries.append(summarize([sums.estimate(lambda pairs: figure(pairs.image_errors))]))
    assert 0.87 <= share_that_holds(truth, summaries) <= 0.99
