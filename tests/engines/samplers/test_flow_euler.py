"""Flow matching: levels by hand, and an exact flow."""

from __future__ import annotations

import numpy as np
import pytest

from engines.samplers import NoiseSchedule, compile_sampler


def _schedule(shift: float) -> NoiseSchedule:
    return NoiseSchedule(prediction_type="flow", num_train_timesteps=100, shift=shift)


def test_timesteps_are_shifted_and_the_last_step_lands_on_the_sample() -> None:
    table = compile_sampler("flow-euler", 3, 0.0, _schedule(3.0))
    least = 3 * 0.01 / (1 + 2 * 0.01)
    between = (1 + least) / 2
    sigma = [1.0, 3 * between / (1 + 2 * between), 3 * least / (1 + 2 * least)]
    np.testing.assert_allclose(table.timestep, 100 * np.array(sigma), rtol=1e-12)
    np.testing.assert_allclose(table.out_coeff, [sigma[1] - sigma[0], sigma[2] - sigma[1], -sigma[2]], rtol=1e-12)
    assert (table.x_coeff.tolist(), table.input_scale.tolist(), table.init_sigma) == ([1] * 3, [1] * 3, 1.0)


@pytest.mark.parametrize("steps", [1, 7])
def test_a_straight_flow_is_followed_exactly(steps: int) -> None:
    table, x0, eps = compile_sampler("flow-euler", steps, 0.0, _schedule(1.0)), 0.3, -1.1
    x = eps
    for row in map(table.step, range(steps)):
        x = row.x_coeff * x + row.out_coeff * (eps - x0)
    assert x == pytest.approx(x0, rel=1e-12)


def test_alpha_bar_is_the_share_of_the_signal() -> None:
    table = compile_sampler("flow-euler", 5, 0.0, _schedule(1.0))
    sigma = table.timestep / 100
    np.testing.assert_allclose(table.alpha_bar / (1 - table.alpha_bar), ((1 - sigma) / sigma) ** 2, rtol=1e-9)
