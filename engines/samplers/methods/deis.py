"""DEIS: Zhang and Chen 2022, arXiv 2204.13902, equation 14, with the polynomial in `log rho` (rho-AB), in second and third order.

With `rho = sigma / alpha`, the flow is `d(x / alpha) = eps d rho`. A step integrates the polynomial in `log rho` through the last
noise predictions:

    x_next / alpha_next = x / alpha + sum_j eps_{i-j} int l_j d rho

A step's history entry `m_i` is the noise prediction. The chain ends at the lowest level of the training, because `log rho` has no end at 0.
"""

from __future__ import annotations

import math

import numpy as np

from engines.arrays import Float64
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of
from engines.samplers.levels.parameterization import epsilon_coeffs
from engines.samplers.methods.multistep_levels import deis_levels
from engines.samplers.table import SamplerTable

_FEW_STEPS = 15
"""`lower_order_final` only applies to chains with fewer steps than this."""


def compile_deis_2(spec: ChainSpec) -> SamplerTable:
    """Compile second order."""
    return _compile(spec, 2)


def compile_deis_3(spec: ChainSpec) -> SamplerTable:
    """Compile third order."""
    return _compile(spec, 3)


def _compile(spec: ChainSpec, order: int) -> SamplerTable:
    visited, S = deis_levels(spec), spec.steps
    alpha, rho = visited.alpha, visited.level
    H = np.zeros((S, order))
    for i in range(S):
        taken = _order(spec, order, i)
        H[i, :taken] = alpha[i + 1] * _integrals(rho[i + 1], rho[i - np.arange(taken)])
    a = alpha_bar_of(rho[:-1])
    R, T = noise = epsilon_coeffs(spec.schedule.prediction_type, a).T
    newest = H[:, 0].copy()
    H[:, 0] = 0
    return SamplerTable(
        name=spec.name,
        timestep=visited.timestep,
        alpha_bar=a,
        x_coeff=alpha[1:] / alpha[:-1] + newest * R,
        out_coeff=newest * T,
        prediction_coeffs=noise.T,
        epsilon_coeffs=noise.T,
        history_coeffs=H[:, :S],
        sigma=np.zeros(S),
        input_scale=np.ones(S),
        init_sigma=1.0,
        clip=None,
        state_scale=np.ones(S),
    )


def _order(spec: ChainSpec, order: int, i: int) -> int:
    """Return the order of step `i`: what there is to look back on, and less at the end of a chain of few steps."""
    ends_low = spec.schedule.lower_order_final and spec.steps < _FEW_STEPS
    return min(order, max(i - spec.first, 0) + 1, spec.steps - i if ends_low else order)


def _integrals(rho_next: float, rho: Float64) -> Float64:
    """Return `int l_j d rho` [J] from `rho_0` to `rho_next`, with the Lagrange polynomials `l_j` in `log rho` through the given levels.

    They are the weights that integrate every power of `log(rho / rho_0)` below J exactly.
    """
    u, L = np.log(rho / rho[0]), math.log(rho_next / rho[0])
    # int u^k d rho = rho u^k - k int u^(k - 1) d rho
    moments = [rho_next - rho[0]]
    for k in range(1, len(rho)):
        moments.append(rho_next * L**k - k * moments[-1])
    return np.linalg.solve(u ** np.arange(len(rho))[:, None], np.array(moments))
