"""Choose the training timesteps that a chain of S steps visits, noisiest first; Lin et al. 2023, arXiv 2305.08891, table 2."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64, Int64
from engines.errors import UsageError
from engines.samplers.levels.noise_schedule import NoiseSchedule


def timesteps(schedule: NoiseSchedule, steps: int) -> Int64:
    """Return the decreasing training timesteps [S] that `set_timesteps` of diffusers' DDIM, DDPM and PNDM gives.

    One exception: for some numbers of steps (61 of 1000 is the first), rounding makes diffusers' trailing spacing overrun and append
    timestep -1. Here a chain of S steps always has S timesteps.

    Raises:
        UsageError: `steps` is not within 1..T, or `steps_offset` pushes a timestep beyond T - 1.
    """
    T = schedule.num_train_timesteps
    _require_steps(steps, T, T)
    match schedule.timestep_spacing:
        case "linspace":
            return np.linspace(0, T - 1, steps).round()[::-1].astype(np.int64)
        case "leading":
            return _within(schedule, steps, np.arange(steps, dtype=np.int64)[::-1] * (T // steps) + schedule.steps_offset)
        case "trailing":
            return _trailing(steps, T, T)


def fractional_timesteps(schedule: NoiseSchedule, steps: int) -> Float64:
    """Return the timesteps [S] that Euler visits: like `timesteps`, but linspace is not rounded. Diffusers holds them in float32."""
    t = timesteps(schedule, steps).astype(np.float64)
    return np.linspace(0, schedule.num_train_timesteps - 1, steps)[::-1] if schedule.timestep_spacing == "linspace" else t


def timesteps_above_the_end(schedule: NoiseSchedule, steps: int, noisiest: int) -> Int64:
    """Return the training timesteps [S] that DPM-Solver++ visits. Leading and linspace omit the lowest of S + 1, where the last step ends.

    Args:
        schedule: gives the spacing and the offset.
        steps: length of the chain.
        noisiest: number of training timesteps to use, counted from the least noisy.

    Raises:
        UsageError: there are too few timesteps for `steps`, or `steps_offset` pushes a timestep beyond T - 1.
    """
    T = schedule.num_train_timesteps
    if schedule.timestep_spacing == "trailing":
        _require_steps(steps, min(T, len(_trailing(steps, T, noisiest))), T)
        return _trailing(steps, T, noisiest)
    _require_steps(steps, noisiest - 1, T)
    if schedule.timestep_spacing == "linspace":
        return np.linspace(0, noisiest - 1, steps + 1).round()[:0:-1].astype(np.int64)
    return _within(schedule, steps, np.arange(steps + 1, dtype=np.int64)[:0:-1] * (noisiest // (steps + 1)) + schedule.steps_offset)


def distilled_timesteps(schedule: NoiseSchedule, steps: int, chosen: Float64 | None) -> Int64:
    """Return the decreasing training timesteps [S] that LCM and TCD visit: `chosen`, or some of those of the distillation, evenly by index.

    Raises:
        UsageError: the chain that the model was distilled from has fewer steps.
    """
    if chosen is not None:
        return chosen.astype(np.int64)
    T, original = schedule.num_train_timesteps, schedule.original_inference_steps
    if not 1 <= steps <= original <= T:
        raise UsageError(
            "The number of sampling steps does not fit the distillation.",
            found=f"steps = {steps}, original_inference_steps = {original}, num_train_timesteps = {T}",
            expected=f"1 to {min(original, T)} steps",
        )
    distilled = np.arange(original, 0, -1) * (T // original) - 1
    return distilled[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]


def _trailing(steps: int, T: int, noisiest: int) -> Int64:
    visited: Int64 = np.arange(noisiest, 0, -T / steps)[:steps].round().astype(np.int64) - 1
    return visited


def _require_steps(steps: int, most: int, T: int) -> None:
    if not 1 <= steps <= most:
        raise UsageError(
            "The number of sampling steps does not fit the training schedule.",
            found=f"steps = {steps}",
            expected=f"1 to {most} at num_train_timesteps = {T}",
        )


def _within(schedule: NoiseSchedule, steps: int, visited: Int64) -> Int64:
    T = schedule.num_train_timesteps
    if visited[0] >= T:
        raise UsageError(
            "The setting steps_offset pushes the first timestep beyond the training schedule.",
            found=f"timestep {visited[0]} at steps = {steps}, steps_offset = {schedule.steps_offset}",
            expected=f"at most {T - 1}",
            mend="use fewer steps, or set steps_offset to 0",
        )
    return visited
