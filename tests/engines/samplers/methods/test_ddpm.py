"""DDPM's coefficients against Gaussian conditioning, and its variances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.errors import UsageError
from engines.samplers import NoiseSchedule, compile_sampler


@pytest.mark.parametrize("steps", [7, 1000])
def test_every_step_is_the_posterior_of_the_forward_process(steps: int) -> None:
    table = compile_sampler("ddpm", steps, 1.0, NoiseSchedule(clip_sample=False, prediction_type="sample"))
    for i in range(steps - 1):
        a, a_prev = table.alpha_bar[i], table.alpha_bar[i + 1]
        # x_prev | x0 is N(sqrt(a_prev) x0, 1 - a_prev) and x | x_prev is N(sqrt(ratio) x_prev, 1 - ratio): precisions add.
        ratio = a / a_prev
        precision = 1 / (1 - a_prev) + ratio / (1 - ratio)
        x_weight, x0_weight = math.sqrt(ratio) / (1 - ratio) / precision, math.sqrt(a_prev) / (1 - a_prev) / precision
        assert table.x_coeff[i] == pytest.approx(x_weight, rel=1e-9)
        assert table.out_coeff[i] == pytest.approx(x0_weight, rel=1e-9)
        assert table.sigma[i] ** 2 == pytest.approx(1 / precision, rel=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
def test_the_last_step_adds_no_noise_and_lands_on_the_clean_sample(variance_type: Any, spacing: Any) -> None:
    schedule = NoiseSchedule(clip_sample=False, variance_type=variance_type, timestep_spacing=spacing)
    table = compile_sampler("ddpm", 10, 1.0, schedule)
    last = table.step(9)
    assert last.sigma == 0
    assert np.all(table.sigma[:-1] > 0)
    assert (last.x_coeff, last.out_coeff) == pytest.approx(last.prediction_coeffs, rel=1e-12)


def test_large_variance_is_that_of_the_forward_step_and_logarithms_change_nothing() -> None:
    small, small_log, large, large_log = (
        compile_sampler("ddpm", 50, 1.0, NoiseSchedule(variance_type=variance_type))
        for variance_type in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
    )
    np.testing.assert_array_equal(small.sigma, small_log.sigma)
    np.testing.assert_array_equal(large.sigma, large_log.sigma)
    np.testing.assert_allclose(large.sigma[:-1] ** 2, 1 - large.alpha_bar[:-1] / large.alpha_bar[1:], rtol=1e-12)
    assert np.all(large.sigma[:-1] > small.sigma[:-1])


def test_clipping_moves_the_prediction_out_of_the_state_and_output_coefficients() -> None:
    clipped = compile_sampler("ddpm", 10, 1.0, NoiseSchedule())
    free = compile_sampler("ddpm", 10, 1.0, NoiseSchedule(clip_sample=False))
    H, (P, Q) = clipped.history_coeffs[:, 0], clipped.prediction_coeffs.T
    assert not clipped.out_coeff.any()
    np.testing.assert_allclose(clipped.x_coeff + H * P, free.x_coeff, rtol=1e-12)
    np.testing.assert_allclose(H * Q, free.out_coeff, rtol=1e-12)


def test_small_variance_is_ddim_at_eta_one() -> None:
    schedule = NoiseSchedule(clip_sample=False)
    ddpm, ddim = compile_sampler("ddpm", 10, 1.0, schedule), compile_sampler("ddim", 10, 1.0, schedule)
    for field in ("x_coeff", "out_coeff", "sigma"):
        np.testing.assert_allclose(getattr(ddpm, field), getattr(ddim, field), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_refuses_an_eta_that_it_does_not_have(eta: float) -> None:
    with pytest.raises(UsageError, match=rf"(?s)eta = {eta}.*eta = 1.*sampler ddim"):
        compile_sampler("ddpm", 10, eta, NoiseSchedule())
