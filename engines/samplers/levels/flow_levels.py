"""The shares of noise that a flow visits: evenly spaced, then shifted towards high noise.

The shift is that of Esser et al. 2024, arXiv 2403.03206, section 5.3.2. diffusers' `FlowMatchEulerDiscreteScheduler` has the rest.
"""

from __future__ import annotations

import math

import numpy as np

from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers.levels.noise_schedule import NoiseSchedule


def flow_levels(schedule: NoiseSchedule, steps: int) -> Float64:
    """Return the shares of noise [S], decreasing from 1; the last step ends at 0.

    Raises:
        UsageError: a chain of one step cannot end at a `shift_terminal`.
    """
    sigma = _shifted(np.linspace(1.0, _last(schedule, steps), steps), schedule)
    return _stretched(sigma, schedule.shift_terminal) if schedule.shift_terminal else sigma


def _last(schedule: NoiseSchedule, steps: int) -> float:
    """Return the last share before the shift. As in diffusers, a constant shift moves that of the lowest training timestep twice."""
    if schedule.last_sigma == "step":
        return 1 / steps
    lowest = 1 / schedule.num_train_timesteps
    return lowest if schedule.mu is not None else float(_shifted(np.array(lowest), schedule))


def _shifted(sigma: Float64, schedule: NoiseSchedule) -> Float64:
    """Return `s sigma / (1 + (s - 1) sigma)`; the dynamic shift s is `exp(mu)`, or `mu` itself if it is linear."""
    shift = schedule.shift
    if schedule.mu is not None:
        shift = math.exp(schedule.mu) if schedule.time_shift_type == "exponential" else schedule.mu
    return shift * sigma / (1 + (shift - 1) * sigma)


def _stretched(sigma: Float64, last: float) -> Float64:
    """Return the levels stretched around 1 so that the last one is `last`."""
    if len(sigma) == 1:
        raise UsageError(
            "A chain of one step cannot end at the level that the model's scheduler asks for.",
            found=f"steps = 1, shift_terminal = {last:g}",
            expected="2 steps or more",
        )
    return np.asarray(1 - (1 - sigma) * (1 - last) / (1 - sigma[-1]))
