"""Noise levels `sigma = sqrt((1 - a) / a)`, the noise-to-signal ratio, which Euler and DPM-Solver++ step through."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.levels.beta_quantiles import beta_quantiles
from engines.samplers.levels.noise_schedule import NoiseSchedule

_LEAST_ALPHA_BAR = 2.0**-24
"""Replaces 0 at zero terminal SNR, where the noise level would be infinite; as in diffusers."""


def noise_levels(alphas: Float64) -> Float64:
    """Return the increasing noise levels [T] of the training timesteps."""
    a = np.where(alphas == 0, _LEAST_ALPHA_BAR, alphas)
    return np.sqrt((1 - a) / a)


def final_level(schedule: NoiseSchedule, levels: Float64) -> float:
    """Return the level where the last step ends: 0, the clean sample, or the lowest training level."""
    return 0.0 if schedule.final_sigmas_type == "zero" else float(levels[0])


def karras_levels(largest: float, smallest: float, steps: int, rho: float) -> Float64:
    """Return decreasing levels [S] (Karras et al. 2022, arXiv 2206.00364, equation 5)."""
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps) ** rho


def spaced_levels(schedule: NoiseSchedule, largest: float, smallest: float, steps: int) -> Float64 | None:
    """Return the decreasing levels [S] of the schedule's spacing between two levels, or None if they are those of its timesteps."""
    match schedule.spacing:
        case "use_karras_sigmas":
            return karras_levels(largest, smallest, steps, schedule.rho)
        case "use_exponential_sigmas":
            return np.geomspace(largest, smallest, steps) if steps > 1 else np.array([largest])
        case "use_beta_sigmas":
            return smallest + beta_quantiles(1 - np.linspace(0, 1, steps)) * (largest - smallest)
    return None


def timesteps_of(sigma: Float64, levels: Float64) -> Float64:
    """Return the fractional training timesteps of noise levels, interpolated in log sigma."""
    return np.interp(np.log(sigma), np.log(levels), np.arange(len(levels)))


def alpha_bar_of(sigma: Float64) -> Float64:
    """Return the cumulative alphas of noise levels."""
    return 1 / (1 + sigma**2)
