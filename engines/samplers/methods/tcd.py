"""Trajectory consistency distillation: Zheng et al. 2024, arXiv 2402.19159, algorithm 4 (strategic stochastic sampling).

A step denoises to a level below the next one, and fresh noise takes it up to the next. `eta` is the paper's `gamma`: at 0 the step ends at
the next level without noise, at 1 it denoises to the end of the training schedule.
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Int64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.parameterization import epsilon_coeffs
from engines.samplers.levels.timesteps import distilled_timesteps
from engines.samplers.table import SamplerTable


def compile_tcd(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- sqrt(a_next / a_s) (sqrt(a_s) x0 + sqrt(1 - a_s) eps) + sqrt(1 - a_next / a_s) z`; the last step ends at timestep 0."""
    t = distilled_timesteps(spec.schedule, spec.steps, spec.timesteps)
    t_next = np.append(t[1:], 0)
    a, a_next, a_s = spec.alphas[t], spec.alphas[t_next], spec.alphas[_below(t_next, spec.eta)]
    direction = np.sqrt(a_next / a_s) * np.sqrt(1 - a_s)
    R, T = epsilon_coeffs(spec.schedule.prediction_type, a).T
    return build_table(spec, t, a, C=np.sqrt(a_next), D=direction * R, E=direction * T, sigma=np.sqrt(1 - a_next / a_s))


def _below(t: Int64, eta: float) -> Int64:
    """Return the timesteps `s = floor((1 - eta) t)` [S], in float32 as diffusers computes them."""
    below: Int64 = np.floor(np.float32(1 - eta) * t.astype(np.float32)).astype(np.int64)
    return below
