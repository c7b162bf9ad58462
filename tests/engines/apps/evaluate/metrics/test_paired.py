"""Paired figures against torchmetrics and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from engines.apps.evaluate.metrics.paired import PairedSums
from engines.apps.evaluate.metrics.ssim import ssim

RNG = np.random.default_rng(0)
FULL = (0.7 * RNG.normal(size=(9, 3, 12, 12))).astype(np.float32)
QUANTIZED = FULL + (0.1 * RNG.normal(size=FULL.shape)).astype(np.float32)


def test_psnr_is_the_mean_over_clipped_images() -> None:
    one, other = (torch.from_numpy(states.astype(np.float64)).clip(-1, 1) for states in (QUANTIZED, FULL))
    expected = peak_signal_noise_ratio(one, other, data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert PairedSums.of(QUANTIZED, FULL).psnr == pytest.approx(float(expected), rel=1e-6)


def test_ssim_is_the_mean_over_clipped_images() -> None:
    expected = ssim(QUANTIZED.clip(-1, 1), FULL.clip(-1, 1), 2.0).mean()
    assert PairedSums.of(QUANTIZED, FULL).ssim == pytest.approx(expected, rel=1e-12)


def test_relative_l2_is_of_the_states_as_they_are() -> None:
    expected = np.linalg.norm((QUANTIZED.astype(np.float64) - FULL).ravel()) / np.linalg.norm(FULL.astype(np.float64).ravel())
    assert PairedSums.of(QUANTIZED, FULL).relative_l2 == pytest.approx(expected, rel=1e-12)
    assert PairedSums.of(3 * FULL, FULL).relative_l2 == pytest.approx(2, rel=1e-6)


def test_a_constant_error_has_a_closed_form() -> None:
    grey = np.zeros((2, 1, 8, 8), np.float32)
    assert PairedSums.of(grey + np.float32(0.5), grey).psnr == pytest.approx(20 * np.log10(2 / 0.5), rel=1e-6)


def test_identical_images_do_not_make_the_mean_infinite() -> None:
    sums = PairedSums.of(FULL, FULL)
    assert sums.psnr == pytest.approx(150)
    assert sums.relative_l2 == 0
    assert sums.ssim == pytest.approx(1)


def test_streaming_is_one_pass() -> None:
    streamed = PairedSums.of(QUANTIZED[:1], FULL[:1]).merge(PairedSums.of(QUANTIZED[1:], FULL[1:]))
    whole = PairedSums.of(QUANTIZED, FULL)
    for figure in ("count", "psnr", "ssim", "relative_l2"):
        assert getattr(streamed, figure) == pytest.approx(getattr(whole, figure), rel=1e-12)
