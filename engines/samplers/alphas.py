"""Betas and cumulative alphas of a noise schedule, in float64 (diffusers has float32: up to 2e-5 apart)."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.noise_schedule import NoiseSchedule

_MAX_COSINE_BETA = 0.999


def alpha_bar(schedule: NoiseSchedule) -> Float64:
    """Cumulative alphas [T]: the share of the clean sample's variance that is left at each training timestep."""
    cumulative = np.cumprod(1 - _betas(schedule), dtype=np.float64)
    return _rescale_zero_terminal_snr(cumulative) if schedule.rescale_betas_zero_snr else cumulative


def _betas(schedule: NoiseSchedule) -> Float64:
    """Variance [T] that each training timestep adds."""
    start, end, T = schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps
    if schedule.trained_betas is not None:
        return np.asarray(schedule.trained_betas)
    match schedule.beta_schedule:
        case "linear":
            return np.linspace(start, end, T)
        case "scaled_linear":
            return np.linspace(start**0.5, end**0.5, T) ** 2
        case "squaredcos_cap_v2":
            return _cosine_betas(T)
        case "sigmoid":
            return (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start


def _cosine_betas(T: int) -> Float64:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17."""
    f: Float64 = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], _MAX_COSINE_BETA)


def _rescale_zero_terminal_snr(alpha_bar: Float64) -> Float64:
    """Lin et al. 2023, arXiv 2305.08891, algorithm 1: shift and scale sqrt(alpha_bar) to end at 0 and keep its first value."""
    root = np.sqrt(alpha_bar)
    rescaled: Float64 = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return rescaled
