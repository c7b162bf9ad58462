"""The shares of noise that a flow visits: evenly spaced, then shifted towards high noise.

The shift is that of Esser et al. 2024, arXiv 2403.03206, section 5.3.2. diffusers' `FlowMatchEulerDiscreteScheduler` has the rest.
"""

from __future__ import annotations

import math

import numpy as np

from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers.levels.noise_levels import spaced_levels
from engines.samplers.levels.noise_schedule import NoiseSchedule


def flow_levels(schedule: NoiseSchedule, steps: int, chosen: Float64 | None = None) -> Float64:
    """Return the shares of noise [S], decreasing; the last step ends at 0.

    Args:
        schedule: the model's noise schedule.
        steps: length of the chain.
        chosen: shares [S] to shift instead of evenly spaced ones from 1; the spacing of the schedule does not change them.

    Raises:
        UsageError: a chain of one step cannot end at a `shift_terminal`.
    """
    sigma = shifted(np.linspace(1.0, _last(schedule, steps), steps) if chosen is None else chosen, schedule)
    if schedule.shift_terminal:
        sigma = _stretched(sigma, schedule.shift_terminal)
    spaced = None if chosen is not None else spaced_levels(schedule, float(sigma[0]), float(sigma[-1]), steps)
    return sigma if spaced is None else spaced


def _last(schedule: NoiseSchedule, steps: int) -> float:
    """Return the last share before the shift. As in diffusers, a constant shift moves that of the lowest training timestep twice."""
    if schedule.last_sigma == "step":
        return 1 / steps
    lowest = 1 / schedule.num_train_timesteps
    return lowest if schedule.mu is not None else float(shifted(np.array(lowest), schedule))


def shifted(sigma: Float64, schedule: NoiseSchedule) -> Float64:
    """Return shares of noise moved towards 1, `s sigma / (1 + (s - 1) sigma)`.

    A dynamic shift `s` is `exp(mu)`, or `mu` itself if it is linear.
    """
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
