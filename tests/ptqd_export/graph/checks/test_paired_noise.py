"""Noise planted on top of an oracle's is found in pairs, at the size that was planted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.errors import PtqdError
from ptqd_export.graph.checks.paired_noise import paired_noise

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

SHAPE = (3, 16, 16)
CHANCE = 1e-4


def _outputs(count: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Full precision of unit power, noise of an oracle with standard deviation 0.05, and more noise of unit power."""
    rng = np.random.default_rng(seed)
    e, d, more = (rng.standard_normal((count, *SHAPE)) for _ in range(3))
    return e, 0.05 * d, more


def test_statistics_of_independent_noise_are_those_of_its_distribution() -> None:
    e, d, more = _outputs(64)
    found = paired_noise(e, e + 0.1 * e + d, e - 0.2 * e + 0.1 * more)
    assert found.oracle_k == pytest.approx(0.1, abs=1e-3)
    assert found.k == pytest.approx(-0.2, abs=2e-3)
    assert (found.oracle_variance, found.variance) == pytest.approx((0.0025, 0.01), rel=0.02)
    assert found.log_ratio == pytest.approx(np.log(4), abs=0.03)
    assert found.ratio_error == pytest.approx(np.sqrt(4 / e.size), rel=0.3)  # two independent variances of this many values
    assert found.k_error == pytest.approx(np.sqrt((0.0025 + 0.01) / e.size), rel=0.3)
    assert found.units == 64


@pytest.mark.parametrize("count", [64, 4])
def test_ten_per_cent_more_noise_is_beyond_what_sampling_explains(count: int) -> None:
    e, d, more = _outputs(count)
    found = paired_noise(e, e + d, e + d + 0.05 * np.sqrt(0.1) * more)
    assert found.log_ratio == pytest.approx(np.log(1.1), abs=0.03)
    assert found.log_ratio > found.bounds(CHANCE)[1]


def test_networks_that_round_differently_now_and_then_are_alike() -> None:
    """Independent noise of the same power is the worst case; over 200 seeds, none is refused."""
    refused = 0
    for seed in range(200):
        e, d, more = _outputs(16, seed)
        found = paired_noise(e, e + d, e + 0.05 * more)
        k_bound, ratio_bound = found.bounds(CHANCE)
        refused += abs(found.k - found.oracle_k) > k_bound or abs(found.log_ratio) > ratio_bound
    assert refused == 0


def test_too_few_values_are_an_error() -> None:
    one = np.ones((2, 3, 7))
    with pytest.raises(PtqdError, match="too few values to verify"):
        paired_noise(one, one, one)
