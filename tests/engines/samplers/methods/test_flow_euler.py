"""Flow matching: levels by hand, and an exact flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.errors import UsageError
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


def _levels_of_diffusers(config: dict[str, Any], steps: int, tokens: int, *, of_pipeline: bool) -> Any:
    """The levels of diffusers' scheduler, asked as a pipeline for samples of so many tokens asks it."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = {"mu": calculate_shift(tokens, *(scheduler.config[key] for key in keys))} if config.get("use_dynamic_shifting") else {}
    sigmas = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if of_pipeline else {"num_inference_steps": steps}
    scheduler.set_timesteps(**sigmas, **mu)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize("of_pipeline", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"shift": 3.0},
        {"shift": 3.0, "use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "base_shift": 0.0, "max_shift": 2.0, "base_image_seq_len": 100, "max_image_seq_len": 8192},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
        {"use_dynamic_shifting": True, "shift_terminal": 0.1, "num_train_timesteps": 500},
        {"shift": 2.0, "shift_terminal": 0.1},
    ],
)
def test_levels_are_those_of_the_scheduler(config: dict[str, Any], *, of_pipeline: bool) -> None:
    for steps, tokens in ((2, 256), (4, 1024), (20, 4096), (28, 1500)):
        schedule = NoiseSchedule.from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **config}, tokens)
        schedule = schedule.model_copy(update={"last_sigma": "step" if of_pipeline else "timestep"})
        table = compile_sampler("flow-euler", steps, 0.0, schedule)
        expected = _levels_of_diffusers(config, steps, tokens, of_pipeline=of_pipeline)
        np.testing.assert_allclose(table.timestep / schedule.num_train_timesteps, expected[:-1], atol=1e-6)
        np.testing.assert_allclose(table.out_coeff, np.diff(expected), atol=1e-6)


def test_one_step_cannot_end_at_a_level_of_its_own() -> None:
    schedule = NoiseSchedule(prediction_type="flow", shift_terminal=0.1)
    with pytest.raises(UsageError, match=r"(?s)steps = 1, shift_terminal = 0\.1.*2 steps or more"):
        compile_sampler("flow-euler", 1, 0.0, schedule)


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
