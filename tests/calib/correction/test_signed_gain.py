"""When a slope is believed: shrinkage and the gate on held-out folds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calib.correction.moments import PLAIN, Moments
from calib.correction.noise_fit import fit_noise
from calib.correction.signed_gain import shrunken_slopes, signed_gain
from engines.arrays import Float64

SAMPLES, PIXELS, S2 = 64, 16, 0.04


def _values(k: Float64, seed: int = 0) -> Float64:
    """[3, samples, C, pixels] with unit `e` and planted slopes."""
    x, e, n = np.random.default_rng(seed).standard_normal((3, SAMPLES, len(k), PIXELS))
    return np.stack([x, e, k.reshape(1, -1, 1) * e + math.sqrt(S2) * n])


def _planted(k: Float64, seed: int = 0, fold_count: int = 4) -> Moments:
    return Moments.of(PLAIN, _values(k, seed), np.arange(SAMPLES) % fold_count)


STANDARD_ERROR = math.sqrt(S2 / (SAMPLES * PIXELS))


def test_without_correlation_the_gain_is_exactly_one() -> None:
    gains = np.array([signed_gain(_planted(np.zeros(1), seed))[0] for seed in range(400)])
    spurious = np.mean(gains != 1)
    assert spurious < 0.02 + 5 * math.sqrt(0.02 / 400), "two standard errors let one in fifty through"
    np.testing.assert_array_equal(signed_gain(_planted(np.zeros(8), seed=1)), np.ones(8))


@pytest.mark.parametrize("k", [-0.2, 0.2])
def test_a_slope_well_above_its_error_is_inverted(k: float) -> None:
    gains = np.array([signed_gain(_planted(np.full(1, k), seed))[0] for seed in range(100)])
    assert np.mean(gains != 1) > 0.95
    assert np.all(np.abs(gains[gains != 1] * (1 + k) - 1) < 6 * STANDARD_ERROR / abs(1 + k))


def test_a_negative_slope_is_left_where_its_inverse_adds_more_than_it_removes() -> None:
    # Removing k^2 costs s2 ((1 + k)^-2 - 1), about -2 k s2; a positive slope gets both.
    k = np.array([-S2])
    assert k**2 < S2 * ((1 + k) ** -2 - 1)
    assert abs(k[0]) > 6 * STANDARD_ERROR, "it is not for being unsure of the slope"
    assert signed_gain(_planted(k)).tolist() == [1.0]
    assert signed_gain(_planted(-k))[0] == pytest.approx(1 / (1 + S2), abs=5 * STANDARD_ERROR)


def test_the_gate_decides_by_channel() -> None:
    values = _values(np.array([0.2, 0.0, -0.2]))
    e, d = values[1:, :, 1]
    for fold in range(4):
        seen = np.arange(SAMPLES) % 4 == fold
        d[seen] -= np.polynomial.Polynomial.fit(e[seen].ravel(), d[seen].ravel(), 1).convert()(e[seen])
    gain = signed_gain(Moments.of(PLAIN, values, np.arange(SAMPLES) % 4))
    assert gain[0] == pytest.approx(1 / 1.2, abs=0.03)
    assert gain[1] == 1
    assert gain[2] == pytest.approx(1 / 0.8, abs=0.03)


def test_a_slope_that_folds_disagree_on_is_not_believed() -> None:
    values = _values(np.zeros(1))
    folds = np.arange(SAMPLES) % 4
    for fold, k in enumerate([0.4, -0.3, 0.4, -0.1]):
        values[2, folds == fold] += k * values[1, folds == fold]
    moments = Moments.of(PLAIN, values, folds)
    assert fit_noise(moments).k > 5 * STANDARD_ERROR
    assert signed_gain(moments).tolist() == [1.0]


def test_one_channel_shrinks_to_itself() -> None:
    moments = _planted(np.full(1, 0.1))
    assert shrunken_slopes(moments)[0] == pytest.approx(fit_noise(moments).k, rel=1e-12)


def test_shrinkage_follows_its_formula() -> None:
    values, folds = _values(np.array([0.05, 0.06, 0.09])), np.arange(SAMPLES) % 4
    e, d = (v - v.mean(axis=(0, 2), keepdims=True) for v in values[1:])
    ee, ed = (e * e).sum(axis=(0, 2)), (e * d).sum(axis=(0, 2))
    k, k_c = ed.sum() / ee.sum(), ed / ee
    scores = np.stack([(e * (d - k_c.reshape(1, -1, 1) * e))[folds == fold].sum(axis=(0, 2)) for fold in range(4)])
    V = 4 / 3 * (scores**2).sum(axis=0) / ee**2
    p = ee / ee.sum()
    tau2 = max(np.sum(p * (k_c - k) ** 2) - np.sum(p * (1 - p) * V), 0) / np.sum(p * (1 - p))
    assert tau2 > 0
    np.testing.assert_allclose(shrunken_slopes(Moments.of(PLAIN, values, folds)), k + tau2 / (tau2 + V) * (k_c - k), rtol=1e-10)


def test_equal_slopes_gain_from_shrinkage_and_unequal_ones_survive_it() -> None:
    def errors(k: Float64) -> tuple[float, float]:
        fits = [_planted(k, seed) for seed in range(50)]
        shrunken, raw = (np.mean([np.sum((slopes - k) ** 2) for slopes in of]) for of in (
            [shrunken_slopes(m) for m in fits],
            [fit_noise(m).k_channel for m in fits],
        ))  # fmt: skip
        return float(shrunken), float(raw)

    shrunken, raw = errors(np.full(8, 0.05))
    assert shrunken < 0.5 * raw
    shrunken, raw = errors(np.linspace(-0.3, 0.3, 8))
    assert shrunken < 1.1 * raw


def test_two_folds_are_enough_and_one_is_not() -> None:
    k = np.array([0.2, 0.25])
    two = _planted(k, fold_count=2)
    assert two.count.tolist()[2:] == [0, 0]
    np.testing.assert_allclose(signed_gain(two), 1 / (1 + k), atol=0.1)
    assert np.all(signed_gain(two) != 1)
    np.testing.assert_array_equal(signed_gain(_planted(k, fold_count=1)), np.ones(2))


def test_an_output_that_lost_its_signal_is_not_inverted() -> None:
    values = _values(np.zeros(2))
    values[2] = -values[1]
    np.testing.assert_array_equal(signed_gain(Moments.of(PLAIN, values, np.arange(SAMPLES) % 4)), np.ones(2))
