"""Compute betas, sigmas and cumulative alphas of a noise schedule in float64 (diffusers uses float32: they differ by up to 2e-5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from engines.arrays import Float64
from engines.samplers.levels.noise_schedule import NoiseSchedule

_LARGEST_BETA = 0.999
"""Cap for schedules that are defined by their cumulative alpha."""


def alpha_bar(schedule: NoiseSchedule) -> Float64:
    """Return the cumulative alphas [T]: the share of the clean sample's variance left at each training timestep."""
    if schedule.sigma_min is not None and schedule.sigma_max is not None:
        return 1 / (1 + np.geomspace(schedule.sigma_min, schedule.sigma_max, schedule.num_train_timesteps) ** 2)
    cumulative = np.cumprod(1 - _betas(schedule), dtype=np.float64)
    return _rescale_zero_terminal_snr(cumulative) if schedule.rescale_betas_zero_snr else cumulative


def _betas(schedule: NoiseSchedule) -> Float64:
    """Return the variance [T] that each training timestep adds."""
    start, end, T = schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps
    if schedule.trained_betas is not None:
        return np.asarray(schedule.trained_betas)
    match schedule.beta_schedule:
        case "linear":
            return np.linspace(start, end, T)
        case "scaled_linear":
            return np.linspace(start**0.5, end**0.5, T) ** 2
        case "sigmoid":
            return (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start
        case "squaredcos_cap_v2" | "laplace" | "exp":
            f = np.array([_CUMULATIVE[schedule.beta_schedule](u) for u in np.arange(T + 1) / T])
            return np.asarray(np.minimum(1 - f[1:] / f[:-1], _LARGEST_BETA))


def _cosine(u: float) -> float:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(u: float) -> float:
    """Log-SNR that follows the quantiles of a Laplace distribution (Hang et al. 2024, arXiv 2407.03297); the roots are diffusers'."""
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _exponential(u: float) -> float:
    return math.exp(-12 * u)


_CUMULATIVE: Mapping[str, Callable[[float], float]] = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _exponential}
"""Cumulative alpha at the fraction `u` of the training timesteps, up to a constant factor."""


def _rescale_zero_terminal_snr(alpha_bar: Float64) -> Float64:
    """Shift and scale sqrt(alpha_bar) to end at 0 and keep its first value: Lin et al. 2023, arXiv 2305.08891, algorithm 1."""
    root = np.sqrt(alpha_bar)
    rescaled: Float64 = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return rescaled
