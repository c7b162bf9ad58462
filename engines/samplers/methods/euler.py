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
from engines.samplers.levels.noise_levels import alpha_bar_of, final_level, noise_levels, spaced_levels, timesteps_of
from engines.samplers.levels.timesteps import fractional_timesteps
from engines.samplers.table import SamplerTable


def compile_euler(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- x + (sigma_next - sigma) (x - x0) / sigma`."""
    t, level = visited_levels(spec)
    return _table(spec, t, level, np.append(level[1:], final_level(spec.schedule, noise_levels(spec.alphas))), fresh=np.zeros(spec.steps))


def compile_euler_ancestral(spec: ChainSpec) -> SamplerTable:
    """Compile an Euler step down to `sigma_down`, then fresh noise up to the next level."""
    t = fractional_timesteps(spec.schedule, spec.steps)
    level = _levels_at(t, noise_levels(spec.alphas), spec)
    level_next = np.append(level[1:], 0.0)
    fresh = level_next * np.sqrt(1 - (level_next / level) ** 2)
    return _table(spec, t, level, np.sqrt(level_next**2 - fresh**2), fresh)


def visited_levels(spec: ChainSpec) -> tuple[Float64, Float64]:
    """Return the timesteps [S] and noise levels [S] of the plan's sigmas or timesteps, or of the schedule and its spacing."""
    levels = noise_levels(spec.alphas)
    if spec.sigmas is not None:
        return timesteps_of(spec.sigmas, levels), spec.sigmas
    t = fractional_timesteps(spec.schedule, spec.steps) if spec.timesteps is None else spec.timesteps
    level = _levels_at(t, levels, spec)
    spaced = None if spec.timesteps is not None else spaced_levels(spec.schedule, level[0], level[-1], spec.steps)
    return (t, level) if spaced is None else (timesteps_of(spaced, levels), spaced)


def first_state(spec: ChainSpec, level: Float64) -> float:
    """Return the standard deviation of the first state: with leading spacing that of the marginal, data included, as in diffusers."""
    return math.hypot(level[0], 1) if spec.schedule.timestep_spacing == "leading" else float(level[0])


def _levels_at(t: Float64, levels: Float64, spec: ChainSpec) -> Float64:
    """Interpolate the noise levels [S] at fractional timesteps; those of a network trained on sigmas in log sigma."""
    if spec.schedule.on_sigmas:
        return np.exp(np.interp(t, np.arange(len(levels)), np.log(levels)))
    return np.interp(t, np.arange(len(levels)), levels)


def _table(spec: ChainSpec, t: Float64, level: Float64, level_down: Float64, fresh: Float64) -> SamplerTable:
    a = alpha_bar_of(level)
    return build_table(
        spec, t, a, C=1 - level_down / level, D=level_down / level, E=np.zeros(len(t)),
        sigma=fresh, scale=np.sqrt(a), init_sigma=first_state(spec, level),
    )  # fmt: skip
