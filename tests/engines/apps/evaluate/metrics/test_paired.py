"""Paired figures against torchmetrics and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from engines.apps.evaluate.metrics.paired import PairedSums, image_errors, median_psnr, pooled_over_seeds, pooled_psnr
from engines.apps.evaluate.metrics.ssim import ssim

RNG = np.random.default_rng(0)
FULL = (0.7 * RNG.normal(size=(9, 3, 12, 12))).astype(np.float32)
QUANTIZED = FULL + (0.1 * np.arange(1, 10)[:, None, None, None] * RNG.normal(size=FULL.shape)).astype(np.float32)


def clipped() -> tuple[torch.Tensor, torch.Tensor]:
    one, other = (torch.from_numpy(states.astype(np.float64)).clip(-1, 1) for states in (QUANTIZED, FULL))
    return one, other


def test_pooled_psnr_is_that_of_all_clipped_images_as_one() -> None:
    expected = peak_signal_noise_ratio(*clipped(), data_range=2.0)
    assert pooled_psnr(image_errors(QUANTIZED, FULL)) == pytest.approx(float(expected), rel=1e-6)


def test_median_psnr_is_over_clipped_images() -> None:
    by_image = peak_signal_noise_ratio(*clipped(), data_range=2.0, reduction="none", dim=(1, 2, 3))
    assert median_psnr(image_errors(QUANTIZED, FULL)) == pytest.approx(float(by_image.median()), rel=1e-6)


def test_ssim_is_the_mean_over_clipped_images() -> None:
    expected = ssim(QUANTIZED.clip(-1, 1), FULL.clip(-1, 1), 2.0).mean()
    assert PairedSums.of(QUANTIZED, FULL).ssim == pytest.approx(expected, rel=1e-12)


def test_relative_l2_is_of_the_states_as_they_are() -> None:
    expected = np.linalg.norm((QUANTIZED.astype(np.float64) - FULL).ravel()) / np.linalg.norm(FULL.astype(np.float64).ravel())
    assert PairedSums.of(QUANTIZED, FULL).relative_l2 == pytest.approx(expected, rel=1e-12)
    assert PairedSums.of(3 * FULL, FULL).relative_l2 == pytest.approx(2, rel=1e-6)


def test_a_constant_error_has_a_closed_form() -> None:
    grey = np.zeros((2, 1, 8, 8), np.float32)
    errors = image_errors(grey + np.float32(0.5), grey)
    assert pooled_psnr(errors) == median_psnr(errors) == pytest.approx(20 * np.log10(2 / 0.5), rel=1e-6)


def test_identical_images_have_infinite_psnr_and_lift_the_others_by_no_more_than_their_number() -> None:
    sums = PairedSums.of(FULL, FULL)
    assert pooled_psnr(sums.image_errors) == median_psnr(sums.image_errors) == np.inf
    assert sums.relative_l2 == 0
    assert sums.ssim == pytest.approx(1)
    half = np.array([0.0, 0.0, 0.04, 0.04])
    assert pooled_psnr(half) == pytest.approx(20 + 10 * np.log10(2))
    assert median_psnr(np.array([0.0, 0.0, 0.04])) == np.inf
    assert median_psnr(np.array([0.0, 0.04, 0.04])) == pytest.approx(20)


def test_psnr_pooled_over_seeds_is_that_of_all_their_images() -> None:
    errors = image_errors(QUANTIZED, FULL)
    by_seed = [pooled_psnr(part) for part in np.split(errors, 3)]
    assert pooled_over_seeds(by_seed) == pytest.approx(pooled_psnr(errors), rel=1e-12)
    assert pooled_over_seeds([np.inf, 20.0]) == pytest.approx(20 + 10 * np.log10(2))
    assert pooled_over_seeds([np.inf, np.inf]) == np.inf


def test_streaming_is_one_pass() -> None:
    streamed = PairedSums.of(QUANTIZED[:1], FULL[:1]).merge(PairedSums.of(QUANTIZED[1:], FULL[1:]))
    whole = PairedSums.of(QUANTIZED, FULL)
    np.testing.assert_array_equal(streamed.image_errors, whole.image_errors)
    for figure in ("ssim", "relative_l2"):
        assert getattr(streamed, figure) == pytest.approx(getattr(whole, figure), rel=1e-12)
