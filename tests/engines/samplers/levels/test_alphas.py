"""Cumulative alphas against diffusers (float32) and against closed forms (float64)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from diffusers import DDPMScheduler

from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import NoiseSchedule

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"num_train_timesteps": 100, "beta_end": 0.1},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.01, 0.05, 0.3], "num_train_timesteps": 3},
    {"rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"},
]


@pytest.mark.parametrize("config", SCHEDULES, ids=str)
def test_equals_diffusers_to_its_own_precision(config: dict[str, Any]) -> None:
    theirs = DDPMScheduler(**config).alphas_cumprod.numpy()
    ours = alpha_bar(NoiseSchedule(**config))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


def test_linear_betas_multiply_up_exactly() -> None:
    ours = alpha_bar(NoiseSchedule(num_train_timesteps=3, beta_start=0.1, beta_end=0.3))
    np.testing.assert_allclose(ours, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-15)


def test_cosine_alphas_are_the_cosine_until_the_cap() -> None:
    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ours = alpha_bar(NoiseSchedule(beta_schedule="squaredcos_cap_v2"))
    np.testing.assert_allclose(ours[:990], [f((t + 1) / 1000) / f(0) for t in range(990)], rtol=1e-11)
    assert ours[-1] == pytest.approx(ours[-2] * (1 - 0.999), rel=1e-11)


def test_sigmoid_betas_run_from_start_to_end() -> None:
    ours = alpha_bar(NoiseSchedule(num_train_timesteps=3, beta_schedule="sigmoid", beta_start=0.1, beta_end=0.3))
    betas = [0.1 + 0.2 / (1 + math.exp(6)), 0.2, 0.1 + 0.2 / (1 + math.exp(-6))]
    np.testing.assert_allclose(ours, np.cumprod([1 - beta for beta in betas]), rtol=1e-14)


def test_zero_terminal_snr_ends_at_exactly_zero_and_keeps_the_first_value() -> None:
    plain, rescaled = alpha_bar(NoiseSchedule()), alpha_bar(NoiseSchedule(rescale_betas_zero_snr=True))
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-14)
    slope = np.diff(np.sqrt(rescaled)) / np.diff(np.sqrt(plain))
    np.testing.assert_allclose(slope, slope[0], rtol=1e-9)
