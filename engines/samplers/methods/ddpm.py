"""DDPM: Ho, Jain and Abbeel 2020, arXiv 2006.11239, equations 6 and 7, for any decreasing sequence of timesteps."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_schedule import VarianceType
from engines.samplers.levels.timesteps import timesteps
from engines.samplers.table import SamplerTable


def compile_ddpm(spec: ChainSpec) -> SamplerTable:
    """Compile the step to the posterior mean of the next state, plus noise with the schedule's fixed variance."""
    t = timesteps(spec.schedule, spec.steps) if spec.timesteps is None else spec.timesteps.astype(np.int64)
    a = spec.alphas[t]
    a_prev = np.append(a[1:], 1.0)
    beta = 1 - a / a_prev
    C = np.sqrt(a_prev) * beta / (1 - a)
    D = np.sqrt(a / a_prev) * (1 - a_prev) / (1 - a)
    sigma = np.sqrt(_variance(spec.schedule.variance_type, a, a_prev, beta))
    return build_table(spec, t, a, C=C, D=D, E=np.zeros(spec.steps), sigma=sigma, clip=spec.schedule.clip)


def _variance(variance_type: VarianceType, a: Float64, a_prev: Float64, beta: Float64) -> Float64:
    """Return the variance [S] of the fresh noise; zero at the last step, whose mean is the clean sample itself.

    The `_log` types differ from the plain ones in how a network would store them, not in value. Diffusers differs in two ways: its
    `fixed_large_log` takes the square root of a logarithm and yields NaN, and it omits the noise at timestep 0 rather than at the last
    step. So with `fixed_large`, its chains that end above 0 (trailing spacing, `steps_offset`) add noise to the finished sample.
    """
    posterior = (1 - a_prev) / (1 - a) * beta
    variance = posterior if variance_type in ("fixed_small", "fixed_small_log") else beta.copy()
    variance[-1] = 0
    return variance
