"""The split of planted noise `d = k e + mu_c + sqrt(s2) n`, with error bounds from theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calib.correction.moments import PLAIN, Moments
from calib.correction.noise_fit import fit_noise
from engines.arrays import Float64

SIGMAS = 5
MEAN_E = np.array([0.5, -1.0, 2.0])
SD_E = np.array([1.0, 0.5, 2.0])
MU = np.array([0.3, -0.2, 0.05])


def _planted(k: Float64 | float, s2: float, samples: int = 400, seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    per_channel = (1, 3, 1)
    x, z, n = rng.standard_normal((3, samples, 3, 50))
    e = MEAN_E.reshape(per_channel) + SD_E.reshape(per_channel) * z
    d = np.broadcast_to(k, 3).reshape(per_channel) * e + MU.reshape(per_channel) + math.sqrt(s2) * n
    return Moments.of(PLAIN, np.stack([x, e, d]), np.arange(samples) % 4)


@pytest.mark.parametrize("k", [-0.09, 0.12])
def test_the_planted_split_is_recovered(k: float) -> None:
    s2, per_channel = 0.04, 400 * 50
    fit = fit_noise(_planted(k, s2))
    assert fit.n == 400
    k_error = math.sqrt(s2 / (per_channel * np.sum(SD_E**2)))
    assert abs(fit.k - k) < SIGMAS * k_error
    assert 10 * k_error < abs(k), "the bound can tell the sign"
    assert np.all(np.abs(fit.k_channel - k) < SIGMAS * np.sqrt(s2 / per_channel) / SD_E)
    assert np.all(np.abs(fit.mu - MU) < SIGMAS * (np.sqrt(s2 / per_channel) + k_error * np.abs(MEAN_E)))
    assert abs(fit.s2 - s2) < SIGMAS * s2 * math.sqrt(2 / (3 * per_channel))
    explained = k**2 * np.mean(SD_E**2)
    assert fit.r2 == pytest.approx(explained / (explained + s2), rel=0.1)


def test_slopes_are_recovered_by_channel() -> None:
    k = np.array([-0.2, 0.1, 0.05])
    fit = fit_noise(_planted(k, s2=0.01))
    assert np.all(np.abs(fit.k_channel - k) < SIGMAS * np.sqrt(0.01 / (400 * 50)) / SD_E)
    assert fit.k == pytest.approx(np.average(k, weights=SD_E**2), abs=0.01)


def test_a_split_by_hand() -> None:
    values = np.array([[0, 0], [-1, 1], [0, 2]], np.float64).reshape(3, 2, 1)
    fit = fit_noise(Moments.of(PLAIN, values, np.array([0, 1])))
    assert (fit.k, fit.mu.tolist(), fit.s2, fit.r2, fit.n) == (1.0, [1.0], 0.0, 1.0, 2)
    assert fit.snr_db == pytest.approx(10 * math.log10(1 / 2))


def test_differences_between_channels_are_no_correlation() -> None:
    rng = np.random.default_rng(0)
    level = np.array([-3.0, 0.0, 3.0]).reshape(1, 3, 1)
    x, z, n = rng.standard_normal((3, 400, 3, 50))
    e, d = level + z, level + n
    assert np.corrcoef(e.ravel(), d.ravel())[0, 1] > 0.8
    fit = fit_noise(Moments.of(PLAIN, np.stack([x, e, d]), np.arange(400) % 4))
    assert abs(fit.k) < SIGMAS / math.sqrt(400 * 50 * 3)


def test_a_clamped_slope_takes_the_rest_of_the_split_with_it() -> None:
    moments = _planted(-0.1, s2=0.04)
    fit = fit_noise(moments, clamp=True)
    assert fit.k == 0
    assert np.all(fit.k_channel == 0)
    np.testing.assert_allclose(fit.mu, moments.mean_of("d"), rtol=1e-12)
    assert fit.s2 == pytest.approx(np.mean(moments.variance("d")))
    assert fit.r2 == pytest.approx(0, abs=1e-12)


def test_clamping_leaves_a_positive_slope_alone() -> None:
    moments = _planted(0.1, s2=0.04)
    assert fit_noise(moments, clamp=True).k == fit_noise(moments).k


def test_the_standard_error_is_right_on_average() -> None:
    s2, repetitions = 0.04, 300
    estimated = np.mean([fit_noise(_planted(0.1, s2, samples=40, seed=seed)).k_standard_error ** 2 for seed in range(repetitions)])
    true = s2 / (40 * 50 * np.sum(SD_E**2))
    # F = 4 folds leave 3 degrees of freedom: the variance of each estimate is 2/3 of its square.
    assert abs(estimated / true - 1) < SIGMAS * math.sqrt(2 / 3 / repetitions)


def test_the_standard_error_counts_images_not_pixels() -> None:
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(300):
        images = np.repeat(rng.standard_normal((3, 40, 1, 1)), 64, axis=-1)
        squares.append(fit_noise(Moments.of(PLAIN, images, np.arange(40) % 4)).k_standard_error ** 2)
    # 1/40 if images are what is independent, 1/2560 if pixels were; the estimate from 4 folds of 10 is biased a little.
    assert np.mean(squares) == pytest.approx(1 / 40, rel=0.3)


def test_one_fold_has_no_standard_error() -> None:
    assert fit_noise(_planted(0.1, s2=0.04).pooled()).k_standard_error == math.inf


def test_nothing_quantized() -> None:
    moments = Moments.of(PLAIN, np.stack([np.ones((8, 2, 3)), np.arange(48.0).reshape(8, 2, 3), np.zeros((8, 2, 3))]), np.arange(8) % 4)
    fit = fit_noise(moments)
    assert (fit.k, fit.k_standard_error, fit.s2, fit.r2, fit.snr_db) == (0, 0, 0, 0, math.inf)
