"""DPM-Solver++: Lu et al. 2022, arXiv 2211.01095, in first order and multistep second order (2M), and their SDE forms.

A step goes from the half log-SNR `lambda` to `lambda + h` at the next level. With `k = 1` for the ODE and `k = 2` for the SDE,

    x  <- (sigma_t / sigma_s) e^((1 - k) h) x + alpha_t (1 - e^(-k h)) m_i + G (m_i - m_{i-1}) h / h_before + noise

where `G` is 0 in first order. The clean samples `m` are the predictions at full steps, so each step costs one evaluation. On
a flow the state is `(1 - sigma) x0 + sigma eps`, and the formulas are the same.
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of
from engines.samplers.levels.noise_schedule import NoiseSchedule, SolverType
from engines.samplers.methods.multistep_levels import MultistepLevels, dpm_levels
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
    visited = dpm_levels(spec)
    level, level_next = visited.level[:-1], visited.level[1:]
    alpha, alpha_next = visited.alpha[:-1], visited.alpha[1:]
    k = 1 + spec.eta
    decay = (level_next / level) ** k  # e^(-k h)
    D = alpha_next / alpha * decay
    C = np.zeros((spec.steps, order))
    C[:, 0] = alpha_next * (1 - decay)
    if order == 2:
        slope = _slope(spec, visited, k)
        C += np.stack([slope, -slope], axis=1)
    sigma = spec.eta * level_next * alpha_next * np.sqrt(1 - decay)
    return build_table(
        spec, visited.timestep, alpha_bar_of(level), C=C, D=D, E=np.zeros(spec.steps), sigma=sigma,
        scale=visited.scale, input_scale=np.ones(spec.steps),
    )  # fmt: skip


def _slope(spec: ChainSpec, visited: MultistepLevels, k: float) -> Float64:
    """Return `G h / h_before` [S]; 0 at the first step, and at the last if the schedule makes it first order."""
    schedule = spec.schedule
    level, level_next, S = visited.level[:-1], visited.level[1:], len(visited.timestep)
    slope = np.zeros(S)
    second = slice(1, S - _ends_with_first_order(schedule, S))
    h = np.log(level[second] / level_next[second])
    h_before = np.log(level[:-1] / level[1:])[: len(h)]
    slope[second] = visited.alpha[1:][second] * _share(schedule.solver_type, k * h) * h / h_before
    slope[spec.first] = 0
    return slope


def _share(solver_type: SolverType, kh: Float64) -> Float64:
    """Return `G / alpha_t`; arXiv 2211.01095, equations of 2M and, in the appendix, of its SDE form. Other types mean midpoint."""
    return 1 + np.expm1(-kh) / kh if solver_type == "heun" else -np.expm1(-kh) / 2


def _ends_with_first_order(schedule: NoiseSchedule, steps: int) -> bool:
    return schedule.euler_at_final or (schedule.lower_order_final and steps < _FEW_STEPS) or schedule.final_sigmas_type == "zero"
