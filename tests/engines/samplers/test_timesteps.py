"""Timesteps against `set_timesteps` of diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from engines.errors import UsageError
from engines.samplers.noise_schedule import NoiseSchedule
from engines.samplers.timesteps import timesteps

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
