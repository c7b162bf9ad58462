"""DPM-Solver++: Lu et al. 2022, arXiv 2211.01095, in first order and multistep second order (2M), and their SDE forms.

A step goes from the half log-SNR `lambda` to `lambda + h` at the next level. With `k = 1` for the ODE and `k = 2` for the SDE,

    x  <- (sigma_t / sigma_s) e^((1 - k) h) x + alpha_t (1 - e^(-k h)) m_i + G (m_i - m_{i-1}) h / h_before + noise

where `G` is 0 in first order. The clean samples `m` are the predictions at full steps, so each step costs one evaluation.
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of, final_level, karras_levels, noise_levels, timesteps_of
from engines.samplers.levels.noise_schedule import NoiseSchedule, SolverType
from engines.samplers.levels.timesteps import timesteps_above_the_end
from engines.samplers.table import SamplerTable

_FEW_STEPS = 15
"""`lower_order_final` only applies to chains with fewer steps than this."""


def compile_dpm_1(spec: ChainSpec) -> SamplerTable:
    """Compile first order: DDIM over noise levels, deterministic at eta 0 and ancestral at eta 1."""
    return _compile(spec, order=1)


def compile_dpm_2m(spec: ChainSpec) -> SamplerTable:
    """Compile multistep second order: the ODE at eta 0, the SDE at eta 1."""
    return _compile(spec, order=2)


def _compile(spec: ChainSpec, order: int) -> SamplerTable:
    schedule, levels = spec.schedule, noise_levels(spec.alphas)
    t, level = _visited_levels(schedule, spec.steps, levels)
    level_next = np.append(level[1:], final_level(schedule, levels))
    a, a_next = alpha_bar_of(level), alpha_bar_of(level_next)
    k = 1 + spec.eta
    decay = (level_next / level) ** k  # e^(-k h)
    D = np.sqrt(a_next / a) * decay
    C = np.zeros((spec.steps, order))
    C[:, 0] = np.sqrt(a_next) * (1 - decay)
    if order == 2:
        slope = _slope(schedule, level, level_next, k)
        C += np.stack([slope, -slope], axis=1)
    sigma = spec.eta * level_next * np.sqrt(a_next) * np.sqrt(1 - decay)
    return build_table(spec, t, a, C=C, D=D, E=np.zeros(spec.steps), sigma=sigma)


def _visited_levels(schedule: NoiseSchedule, steps: int, levels: Float64) -> tuple[Float64, Float64]:
    """Return the timesteps [S] and noise levels [S] that the chain visits."""
    if schedule.use_karras_sigmas:
        level = karras_levels(levels[-1], levels[0], steps)
        between = timesteps_of(level, levels)
        # Diffusers rounds except for the cosine schedule, and then truncates every timestep to an integer.
        return np.trunc(between if schedule.beta_schedule == "squaredcos_cap_v2" else between.round()), level
    t = timesteps_above_the_end(schedule, steps, _noisiest(schedule, levels))
    return t.astype(np.float64), levels[t]


def _noisiest(schedule: NoiseSchedule, levels: Float64) -> int:
    """Return the number of training timesteps that are not noisier than `lambda_min_clipped`."""
    if schedule.lambda_min_clipped is None:
        return len(levels)
    return int(np.count_nonzero(-np.log(levels) >= schedule.lambda_min_clipped))


def _slope(schedule: NoiseSchedule, level: Float64, level_next: Float64, k: float) -> Float64:
    """Return `G h / h_before` [S]; 0 at the first step, and at the last if the schedule makes it first order."""
    slope = np.zeros(len(level))
    second = slice(1, len(level) - _ends_with_first_order(schedule, len(level)))
    h = np.log(level[second] / level_next[second])
    h_before = np.log(level[:-1] / level[1:])[: len(h)]
    slope[second] = np.sqrt(alpha_bar_of(level_next[second])) * _share(schedule.solver_type, k * h) * h / h_before
    return slope


def _share(solver_type: SolverType, kh: Float64) -> Float64:
    """Return `G / alpha_t`; arXiv 2211.01095, equations of 2M and, in the appendix, of its SDE form."""
    match solver_type:
        case "midpoint":
            return -np.expm1(-kh) / 2
        case "heun":
            return 1 + np.expm1(-kh) / kh


def _ends_with_first_order(schedule: NoiseSchedule, steps: int) -> bool:
    return schedule.euler_at_final or (schedule.lower_order_final and steps < _FEW_STEPS) or schedule.final_sigmas_type == "zero"
