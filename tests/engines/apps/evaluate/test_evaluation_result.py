"""Figures of two chains over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from engines.apps.evaluate.evaluation_result import compare, labelled
from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate


def estimate(value: float, spread: float = 0.0) -> Estimate:
    return Estimate(value, value + spread * np.linspace(-1, 1, BLOCKS))


def test_differences_are_taken_seed_by_seed() -> None:
    both = [({"recall": estimate(0.5, 1)}, {"recall": estimate(0.6, 1)}), ({"recall": estimate(0.7, 1)}, {"recall": estimate(0.9, 1)})]
    figure = compare(both)["recall"]
    assert figure.full_precision is not None
    assert figure.difference is not None
    assert figure.full_precision.values == (0.5, 0.7)
    assert figure.quantized.mean == pytest.approx(0.75)
    assert figure.difference.values == pytest.approx((0.1, 0.2))
    assert figure.difference.interval is not None
    assert figure.quantized.interval is not None
    low, high = figure.difference.interval
    assert high - low == pytest.approx(0, abs=1e-12)  # what both share is no uncertainty of their difference
    assert figure.quantized.interval[1] > 1


def test_paired_figures_have_no_counterpart() -> None:
    figure = compare([({}, {"ssim": estimate(30.0)})])["ssim"]
    assert (figure.full_precision, figure.difference) == (None, None)
    assert figure.quantized.values == (30.0,)


def test_figures_and_their_labels_name_the_network_behind_them() -> None:
    both = [({"recall": estimate(0.5)}, {"recall": estimate(0.6), "ssim": estimate(30.0)})]
    figures = compare(both, {"recall": "ptqd-small-1"})
    assert {name: labelled(name, figure.extractor) for name, figure in figures.items()} == {
        "recall": "recall (ptqd-small-1)", "ssim": "ssim",
    }  # fmt: skip


def test_psnr_of_several_seeds_is_pooled_too() -> None:
    figures = compare([({}, {"pooled_psnr": estimate(value), "ssim": estimate(value)}) for value in (10.0, 40.0)])
    assert figures["pooled_psnr"].quantized.mean == pytest.approx(-10 * np.log10((0.1 + 0.0001) / 2))
    assert figures["ssim"].quantized.mean == 25


def test_infinite_figures_have_neither_interval_nor_deviation() -> None:
    same, nearly = estimate(np.inf), Estimate(30.0, np.array([np.inf, *[30.0] * (BLOCKS - 1)]))
    for both in ([same], [same, estimate(30.0)], [nearly]):
        summary = compare([({}, {"pooled_psnr": one}) for one in both])["pooled_psnr"].quantized
        assert (summary.interval, summary.deviation) == (None, None)
