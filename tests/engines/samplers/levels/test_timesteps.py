"""Timesteps against `set_timesteps` of diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from engines.errors import UsageError
from engines.samplers.levels.noise_schedule import NoiseSchedule
from engines.samplers.levels.timesteps import fractional_timesteps, timesteps, timesteps_above_the_end

SPACINGS = ["leading", "trailing", "linspace"]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_equals_diffusers_at_every_count(scheduler: Any, spacing: Any) -> None:
    theirs = scheduler(num_train_timesteps=100, timestep_spacing=spacing)
    schedule = NoiseSchedule(num_train_timesteps=100, timestep_spacing=spacing)
    for steps in range(1, 101):
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.numpy()
        # Diffusers' trailing spacing overruns by rounding at 29, 31, 58, 62 and 97 of 100.
        expected = expected[expected >= 0]
        ours = timesteps(schedule, steps)
        assert ours.dtype == np.int64
        assert len(ours) == steps
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [("leading", [801, 601, 401, 201, 1]), ("trailing", [999, 799, 599, 399, 199]), ("linspace", [999, 749, 500, 250, 0])],
)
def test_literal_values_with_an_offset_that_only_leading_takes(spacing: Any, expected: list[int]) -> None:
    schedule = NoiseSchedule(timestep_spacing=spacing, steps_offset=1)
    assert timesteps(schedule, 5).tolist() == expected


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_refuses_a_count_that_the_schedule_does_not_have(steps: int) -> None:
    with pytest.raises(UsageError, match=f"(?s)steps = {steps}.*num_train_timesteps = 1000"):
        timesteps(NoiseSchedule(), steps)


def test_refuses_an_offset_beyond_the_schedule() -> None:
    with pytest.raises(UsageError, match=r"(?s)timestep 1000 at steps = 1000, steps_offset = 1.*at most 999"):
        timesteps(NoiseSchedule(steps_offset=1), 1000)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("spacing", SPACINGS)
def test_those_above_the_end_are_dpm_solvers_at_every_count(spacing: Any) -> None:
    theirs = DPMSolverMultistepScheduler(num_train_timesteps=100, timestep_spacing=spacing)
    schedule = NoiseSchedule(num_train_timesteps=100, timestep_spacing=spacing)
    for steps in range(1, 100):
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.numpy()
        np.testing.assert_array_equal(timesteps_above_the_end(schedule, steps, 100), expected[expected >= 0])


@pytest.mark.parametrize(("spacing", "noisiest", "most"), [("leading", 100, 99), ("linspace", 80, 79), ("trailing", 100, 100)])
def test_no_more_steps_than_there_are_timesteps_above_the_end(spacing: Any, noisiest: int, most: int) -> None:
    schedule = NoiseSchedule(num_train_timesteps=100, timestep_spacing=spacing)
    assert np.all(np.diff(timesteps_above_the_end(schedule, most, noisiest)) < 0)
    with pytest.raises(UsageError, match=f"(?s)steps = {most + 1}.*1 to {most} at num_train_timesteps = 100"):
        timesteps_above_the_end(schedule, most + 1, noisiest)


def test_trailing_cannot_leave_out_noisy_timesteps() -> None:
    schedule = NoiseSchedule(num_train_timesteps=100, timestep_spacing="trailing")
    with pytest.raises(UsageError, match=r"(?s)steps = 10.*1 to 8"):
        timesteps_above_the_end(schedule, 10, 80)


def test_fractions_are_left_where_linspace_has_them() -> None:
    assert fractional_timesteps(NoiseSchedule(timestep_spacing="linspace"), 5).tolist() == [999, 749.25, 499.5, 249.75, 0]
    assert fractional_timesteps(NoiseSchedule(steps_offset=1), 5).tolist() == [801, 601, 401, 201, 1]
