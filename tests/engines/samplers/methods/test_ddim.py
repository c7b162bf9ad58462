"""DDIM's coefficients against the paper's formulas, and its chain against Gaussian data, whose exact noise prediction is linear."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.samplers import NoiseSchedule, compile_sampler
from engines.samplers.levels.alphas import alpha_bar

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_step_is_equation_12_with_the_sigma_of_equation_16(prediction_type: Any, eta: float) -> None:
    schedule = NoiseSchedule(clip_sample=False, prediction_type=prediction_type)
    a = alpha_bar(schedule)
    table = compile_sampler("ddim", 10, eta, schedule)
    x0, eps = 0.4, 1.1
    for i, t in enumerate(range(900, -1, -100)):
        a_t, a_prev = a[t], a[t - 100] if t else 1.0
        sigma = eta * math.sqrt((1 - a_prev) / (1 - a_t)) * math.sqrt(1 - a_t / a_prev)
        x = math.sqrt(a_t) * x0 + math.sqrt(1 - a_t) * eps
        out = {"epsilon": eps, "v_prediction": math.sqrt(a_t) * eps - math.sqrt(1 - a_t) * x0, "sample": x0}[prediction_type]
        step = table.step(i)
        assert (step.timestep, step.alpha_bar, step.clip, step.history_coeffs) == (t, a_t, None, ())
        assert step.sigma == pytest.approx(sigma, rel=1e-12)
        mean = math.sqrt(a_prev) * x0 + math.sqrt(1 - a_prev - sigma**2) * eps
        assert step.x_coeff * x + step.out_coeff * out == pytest.approx(mean, rel=1e-11)


def test_clipping_moves_the_prediction_out_of_the_state_and_output_coefficients() -> None:
    clipped = compile_sampler("ddim", 10, 0.5, NoiseSchedule(clip_sample_range=3.0))
    free = compile_sampler("ddim", 10, 0.5, NoiseSchedule(clip_sample=False))
    assert clipped.clip == 3.0
    assert clipped.history_coeffs.shape == (10, 1)
    assert free.history_coeffs.shape == (10, 0)
    H, (P, Q) = clipped.history_coeffs[:, 0], clipped.prediction_coeffs.T
    np.testing.assert_allclose(clipped.x_coeff + H * P, free.x_coeff, rtol=1e-12)
    np.testing.assert_allclose(clipped.out_coeff + H * Q, free.out_coeff, rtol=1e-12)
    assert np.all(clipped.x_coeff == 0)


def test_without_eta_there_is_no_noise_and_the_last_step_lands_on_the_clean_sample() -> None:
    table = compile_sampler("ddim", 20, 0.0, NoiseSchedule(clip_sample=False))
    assert not table.sigma.any()
    last = table.step(19)
    assert (last.x_coeff, last.out_coeff) == pytest.approx(last.prediction_coeffs, rel=1e-12)


def test_without_set_alpha_to_one_the_last_step_goes_to_the_first_alpha() -> None:
    schedule = NoiseSchedule(clip_sample=False, prediction_type="sample", set_alpha_to_one=False)
    table = compile_sampler("ddim", 10, 0.0, schedule)
    assert (table.x_coeff[-1], table.out_coeff[-1]) == pytest.approx((1, 0), abs=1e-12)


def test_starts_from_pure_noise_at_zero_terminal_snr() -> None:
    schedule = NoiseSchedule(clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    table = compile_sampler("ddim", 10, 1.0, schedule)
    assert table.alpha_bar[0] == 0
    assert np.isfinite([table.x_coeff, table.out_coeff, table.sigma]).all()
    assert table.x_coeff[0] == 0


def end_variance(steps: int, eta: float, data_variance: float) -> float:
    """Variance of the finished samples under the exact noise prediction for Gaussian data, which is linear in the state."""
    table = compile_sampler("ddim", steps, eta, NoiseSchedule(clip_sample=False))
    state = 1.0
    for step in map(table.step, range(steps)):
        a = step.alpha_bar
        eps_per_x = math.sqrt(1 - a) / (a * data_variance + 1 - a)
        state = (step.x_coeff + step.out_coeff * eps_per_x) ** 2 * state + step.sigma**2
    return state


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_converges_to_the_variance_of_gaussian_data_with_order_one(eta: float) -> None:
    coarse, fine = (abs(end_variance(steps, eta, 0.3) / 0.3 - 1) for steps in (100, 1000))
    assert fine < 0.02
    assert 7 < coarse / fine < 13
