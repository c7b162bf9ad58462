"""DPM-Solver++ against DDIM, which its first order is, and the noise of its SDE form against the forward process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.samplers import NoiseSchedule, compile_sampler
from engines.samplers.levels.alphas import alpha_bar

SCHEDULE = NoiseSchedule(clip_sample=False, num_train_timesteps=1000)
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("name", "eta"), [("dpm++1", 0.0), ("dpm++1-sde", 1.0)])
def test_the_first_order_is_ddim_and_its_sde_ancestral_ddim(name: str, eta: float, prediction_type: Any) -> None:
    schedule = SCHEDULE.model_copy(update={"prediction_type": prediction_type, "timestep_spacing": "trailing"})
    dpm = compile_sampler(name, 10, float(eta), schedule)
    ddim = compile_sampler("ddim", 10, eta, schedule)
    np.testing.assert_array_equal(dpm.timestep, ddim.timestep)
    for field in ("alpha_bar", "x_coeff", "out_coeff", "sigma", "prediction_coeffs", "epsilon_coeffs"):
        np.testing.assert_allclose(getattr(dpm, field), getattr(ddim, field), rtol=1e-8, atol=1e-11, err_msg=field)


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++2m-sde"])
def test_the_second_order_starts_and_ends_with_the_first(name: str) -> None:
    first, second = (compile_sampler(kind, 20, float(name.endswith("sde")), SCHEDULE) for kind in (name.replace("2m", "1"), name))
    for i in (0, 19):
        assert not second.history_coeffs[i].any()
        assert (second.x_coeff[i], second.out_coeff[i]) == (first.x_coeff[i], first.out_coeff[i])
    assert second.history_coeffs[1:19, 1].all()
    np.testing.assert_array_equal(second.sigma, first.sigma)


def test_a_prediction_that_does_not_change_leads_where_the_first_order_does() -> None:
    """`m_i = m_{i-1}` leaves nothing of the second-order term, whichever solver."""
    for solver in ("midpoint", "heun"):
        schedule = SCHEDULE.model_copy(update={"prediction_type": "sample", "solver_type": solver})
        first, second = (compile_sampler(name, 20, 0.0, schedule) for name in ("dpm++1", "dpm++2m"))
        np.testing.assert_allclose(second.out_coeff + second.history_coeffs[:, 1], first.out_coeff, rtol=1e-12)
        np.testing.assert_array_equal(second.x_coeff, first.x_coeff)


@pytest.mark.parametrize(("steps", "last_is_first_order"), [(14, True), (15, False)])
def test_few_steps_end_with_the_first_order(steps: int, last_is_first_order: bool) -> None:
    schedule = SCHEDULE.model_copy(update={"final_sigmas_type": "sigma_min"})
    assert (compile_sampler("dpm++2m", steps, 0.0, schedule).history_coeffs[-1, 1] == 0) == last_is_first_order


def test_karras_levels_are_the_papers() -> None:
    table = compile_sampler("dpm++2m", 5, 0.0, SCHEDULE.model_copy(update={"use_karras_sigmas": True}))
    levels = np.sqrt(1 / table.alpha_bar - 1)
    alphas = alpha_bar(SCHEDULE)
    largest, smallest = np.sqrt(1 / alphas[[-1, 0]] - 1)
    expected = [(largest ** (1 / 7) + i / 4 * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7 for i in range(5)]
    np.testing.assert_allclose(levels, expected, rtol=1e-9)
    assert (table.timestep == table.timestep.round()).all()


def test_a_bounded_level_starts_no_noisier() -> None:
    free = SCHEDULE.model_copy(update={"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"})
    bounded = free.model_copy(update={"lambda_min_clipped": -5.1})
    a = np.array([compile_sampler("dpm++2m", 10, 0.0, schedule).alpha_bar[0] for schedule in (free, bounded)])
    start = np.log(a / (1 - a)) / 2
    assert start[0] < -5.1 < start[1] < -4.9
