"""Euler's method and its ancestral form over noise levels: Karras et al. 2022, arXiv 2206.00364, algorithm 1, and k-diffusion.

The state is `x0 + sigma eps`, whose variance grows with the noise. Networks take it divided by `sqrt(1 + sigma^2)`, which again gives
`sqrt(a) x0 + sqrt(1 - a) eps`.
"""

from __future__ import annotations

import math

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of, final_level, karras_levels, noise_levels, timesteps_of
from engines.samplers.levels.timesteps import fractional_timesteps
from engines.samplers.table import SamplerTable


def compile_euler(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- x + (sigma_next - sigma) (x - x0) / sigma`."""
    levels = noise_levels(spec.alphas)
    t = fractional_timesteps(spec.schedule, spec.steps)
    level = _levels_at(t, levels)
    if spec.schedule.use_karras_sigmas:
        level = karras_levels(level[0], level[-1], spec.steps)
        t = timesteps_of(level, levels)
    return _table(spec, t, level, np.append(level[1:], final_level(spec.schedule, levels)), fresh=np.zeros(spec.steps))


def compile_euler_ancestral(spec: ChainSpec) -> SamplerTable:
    """Compile an Euler step down to `sigma_down`, then fresh noise up to the next level."""
    t = fractional_timesteps(spec.schedule, spec.steps)
    level = _levels_at(t, noise_levels(spec.alphas))
    level_next = np.append(level[1:], 0.0)
    fresh = level_next * np.sqrt(1 - (level_next / level) ** 2)
    return _table(spec, t, level, np.sqrt(level_next**2 - fresh**2), fresh)


def _levels_at(t: Float64, levels: Float64) -> Float64:
    """Interpolate the noise levels [S] at fractional timesteps."""
    return np.interp(t, np.arange(len(levels)), levels)


def _table(spec: ChainSpec, t: Float64, level: Float64, level_down: Float64, fresh: Float64) -> SamplerTable:
    a = alpha_bar_of(level)
    # With leading spacing diffusers starts from the marginal of the first level, data included; otherwise from its noise alone.
    init_sigma = math.hypot(level[0], 1) if spec.schedule.timestep_spacing == "leading" else float(level[0])
    return build_table(
        spec, t, a, C=1 - level_down / level, D=level_down / level, E=np.zeros(len(t)),
        sigma=fresh, scale=np.sqrt(a), init_sigma=init_sigma,
    )  # fmt: skip
