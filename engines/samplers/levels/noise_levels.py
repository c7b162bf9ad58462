"""Noise levels `sigma = sqrt((1 - a) / a)`, noise to signal: what Euler and DPM-Solver++ walk instead of timesteps."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.levels.noise_schedule import NoiseSchedule

_LEAST_ALPHA_BAR = 2.0**-24
"""In place of 0 at zero terminal SNR, whose noise level is infinite; as in diffusers."""

_RHO = 7.0


def noise_levels(alphas: Float64) -> Float64:
    """The level [T] of each training timestep, rising."""
    a = np.where(alphas == 0, _LEAST_ALPHA_BAR, alphas)
    return np.sqrt((1 - a) / a)


def final_level(schedule: NoiseSchedule, levels: Float64) -> float:
    """Where the last step goes: to the clean sample, or to the least level of the training."""
    return 0.0 if schedule.final_sigmas_type == "zero" else float(levels[0])


def karras_levels(largest: float, smallest: float, steps: int) -> Float64:
    """[S] falling levels (Karras et al. 2022, arXiv 2206.00364, equation 5)."""
    return np.linspace(largest ** (1 / _RHO), smallest ** (1 / _RHO), steps) ** _RHO


def timesteps_of(sigma: Float64, levels: Float64) -> Float64:
    """The fractional training timesteps of noise levels, interpolated in their logarithm."""
    return np.interp(np.log(sigma), np.log(levels), np.arange(len(levels)))


def alpha_bar_of(sigma: Float64) -> Float64:
    """Cumulative alphas of noise levels."""
    return 1 / (1 + sigma**2)
