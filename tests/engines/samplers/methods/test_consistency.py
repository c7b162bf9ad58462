"""Multistep consistency sampling, against algorithm 1 of Song et al. (arXiv 2303.01469) as it is printed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.chain.update import update
from engines.errors import UsageError
from engines.samplers import NoiseSchedule, compile_sampler

LOW, HIGH = 0.002, 80.0
SCHEDULE = NoiseSchedule(
    sigma_min=LOW, sigma_max=HIGH, prediction_type="sample", clip_sample=False, timestep_spacing="linspace", use_karras_sigmas=True
)


def consistency(x: Any, sigma: float) -> Any:
    """A function of the state and its level, the identity at the lowest one."""
    return x / (1 + (sigma - LOW) ** 2) + (sigma - LOW) * 0.01


@pytest.mark.parametrize("levels", [(80.0,), (80.0, 2.0, 0.5), (24.4, 0.002)])
def test_the_table_is_the_algorithm(levels: tuple[float, ...]) -> None:
    table = compile_sampler("consistency", len(levels), 1.0, SCHEDULE, sigmas=levels)
    rng = np.random.default_rng(0)
    start, noises = rng.standard_normal(5), rng.standard_normal((len(levels), 5))
    x: Any = table.init_sigma * start
    for step, z in zip(map(table.step, range(table.steps)), noises, strict=True):
        sigma = math.sqrt(1 / step.alpha_bar - 1)
        assert np.allclose(step.input_scale * x * math.hypot(1, sigma), x)
        x, _ = update(x, consistency(x, sigma), step, [])
        x = x + step.sigma * z
    expected = consistency(levels[0] * start, levels[0])
    for tau, z in zip(levels[1:], noises, strict=False):
        expected = consistency(expected + math.sqrt(tau**2 - LOW**2) * z, tau)
    np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)


def test_one_step_begins_at_the_highest_level_and_draws_no_noise() -> None:
    table = compile_sampler("consistency", 1, 1.0, SCHEDULE)
    assert table.init_sigma == pytest.approx(HIGH, rel=1e-9)
    assert table.timestep.tolist() == pytest.approx([999])
    assert table.sigma.tolist() == [0]


def test_steps_are_spaced_as_karras_levels() -> None:
    sigma = np.sqrt(1 / compile_sampler("consistency", 3, 1.0, SCHEDULE).alpha_bar - 1)
    np.testing.assert_allclose(sigma ** (1 / 7), np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), 4)[:3], rtol=1e-9)


@pytest.mark.parametrize("sigma", [81.0, 0.001])
def test_levels_that_the_network_has_not_seen_are_refused(sigma: float) -> None:
    with pytest.raises(UsageError, match="outside of the training's"):
        compile_sampler("consistency", 1, 1.0, SCHEDULE, sigmas=(sigma,))


@pytest.mark.parametrize("name", ["euler", "heun", "dpm++2m", "unipc2"])
def test_the_levels_of_edm_are_visited_exactly(name: str) -> None:
    """Timesteps lie between those of the table: a level is that of its timestep in log sigma. Karras et al., equation 5."""
    table = compile_sampler(name, 6, 0.0, SCHEDULE)
    sigma = np.sqrt(1 / table.alpha_bar - 1)
    np.testing.assert_allclose(LOW * (HIGH / LOW) ** (table.timestep / 999), sigma, rtol=1e-7)
    expected = np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), 6) ** 7
    np.testing.assert_allclose(np.unique(sigma.round(9)), np.unique(expected.round(9)), rtol=1e-6)


def test_a_range_needs_both_ends_in_their_order() -> None:
    for low, high in ((1.0, None), (2.0, 1.0)):
        with pytest.raises(UsageError, match="have no range"):
            NoiseSchedule(sigma_min=low, sigma_max=high)
