"""Which training timesteps a chain of S steps visits, the noisiest first; Lin et al. 2023, arXiv 2305.08891, table 2."""

from __future__ import annotations

import numpy as np

from engines.arrays import Int64
from engines.errors import UsageError
from engines.samplers.noise_schedule import NoiseSchedule


def timesteps(schedule: NoiseSchedule, steps: int) -> Int64:
    """Training timesteps [S], falling, as `set_timesteps` of diffusers' DDIM and DDPM gives them.

    One exception: at some counts (61 of 1000 is the first) diffusers' trailing spacing overruns by rounding and appends
    timestep -1. Here a chain of S steps always has S.

    Raises:
        UsageError: `steps` is not within 1..T, or `steps_offset` pushes a timestep beyond T - 1.
    """
    T = schedule.num_train_timesteps
    if not 1 <= steps <= T:
        raise UsageError(
            "the number of sampling steps does not fit the training schedule",
            found=f"steps = {steps}",
            expected=f"1 to num_train_timesteps = {T}",
        )
    visited = _spaced(schedule, steps)
    if visited[0] >= T:
        raise UsageError(
            "steps_offset pushes the first timestep beyond the training schedule",
            found=f"timestep {visited[0]} at steps = {steps}, steps_offset = {schedule.steps_offset}",
            expected=f"at most {T - 1}",
            mend="take fewer steps, or set steps_offset to 0",
        )
    return visited


def _spaced(schedule: NoiseSchedule, steps: int) -> Int64:
    T = schedule.num_train_timesteps
    match schedule.timestep_spacing:
        case "linspace":
            return np.linspace(0, T - 1, steps).round()[::-1].astype(np.int64)
        case "leading":
            return np.arange(steps, dtype=np.int64)[::-1] * (T // steps) + schedule.steps_offset
        case "trailing":
            return np.arange(T, 0, -T / steps)[:steps].round().astype(np.int64) - 1
