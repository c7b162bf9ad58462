"""Euler in the state `x0 + sigma eps`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.samplers import NoiseSchedule, compile_sampler
from engines.samplers.levels.alphas import alpha_bar

SCHEDULE = NoiseSchedule(clip_sample=False, timestep_spacing="linspace")
LEVELS = np.sqrt(1 / alpha_bar(SCHEDULE) - 1)


def test_a_step_moves_by_the_difference_of_the_levels() -> None:
    table = compile_sampler("euler", 4, 0.0, SCHEDULE)
    sigma = [*np.interp([999, 666, 333, 0], np.arange(1000), LEVELS), 0.0]
    np.testing.assert_allclose(table.x_coeff, 1, rtol=1e-12)
    np.testing.assert_allclose(table.out_coeff, np.diff(sigma), rtol=1e-10)
    np.testing.assert_allclose(table.input_scale, [1 / math.sqrt(1 + s**2) for s in sigma[:-1]], rtol=1e-12)
    np.testing.assert_allclose(1 / table.alpha_bar - 1, np.square(sigma[:-1]), rtol=1e-9)


def test_timesteps_between_those_of_the_training_have_levels_between_theirs() -> None:
    table = compile_sampler("euler", 5, 0.0, SCHEDULE)
    assert table.timestep[1] == 749.25
    assert math.sqrt(1 / table.alpha_bar[1] - 1) == pytest.approx(0.75 * LEVELS[749] + 0.25 * LEVELS[750], rel=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_an_ancestral_step_keeps_the_marginal(prediction_type: Any) -> None:
    """From `x0 + sigma eps` to `x0 + sigma_down eps`, and up to the next level by fresh noise."""
    table = compile_sampler("euler-ancestral", 10, 1.0, SCHEDULE.model_copy(update={"prediction_type": prediction_type}))
    level = [*np.sqrt(1 / table.alpha_bar - 1), 0.0]
    x0, eps = 0.4, -1.2
    for i, row in enumerate(map(table.step, range(10))):
        a = row.alpha_bar
        out = {"epsilon": eps, "v_prediction": math.sqrt(a) * eps - math.sqrt(1 - a) * x0, "sample": x0}[prediction_type]
        down = (row.x_coeff * (x0 + level[i] * eps) + row.out_coeff * out - x0) / eps
        assert down**2 + row.sigma**2 == pytest.approx(level[i + 1] ** 2, rel=1e-9, abs=1e-18)
        assert row.sigma == pytest.approx(level[i + 1] * math.sqrt(1 - (level[i + 1] / level[i]) ** 2), rel=1e-9)


@pytest.mark.parametrize(("spacing", "with_data"), [("leading", True), ("trailing", False), ("linspace", False)])
def test_the_first_state_has_the_variance_of_noise_or_of_the_marginal(spacing: Any, with_data: bool) -> None:
    table = compile_sampler("euler", 10, 0.0, SCHEDULE.model_copy(update={"timestep_spacing": spacing}))
    assert table.init_sigma**2 - (1 / table.alpha_bar[0] - 1) == pytest.approx(float(with_data), abs=1e-8)
