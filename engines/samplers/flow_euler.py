"""Euler's method on a flow: Lipman et al. 2022, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206, section 5.3.2, for the shift.

The state is `(1 - sigma) x0 + sigma eps`. Networks take it unscaled, with the timestep `sigma T`, and predict `eps - x0`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import spaced_levels
from engines.samplers.table import SamplerTable


def compile_flow_euler(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- x + (sigma_next - sigma) out`."""
    sigma = _shares(spec)
    change = np.diff(sigma, append=0.0)
    norm = np.hypot(1 - sigma, sigma)
    none = np.zeros(spec.steps)
    table = build_table(
        spec, sigma * spec.schedule.num_train_timesteps, ((1 - sigma) / norm) ** 2, C=none, D=none + 1, E=change,
        sigma=none, scale=1 / norm,
    )  # fmt: skip
    return replace(table, input_scale=np.ones(spec.steps))


def _shares(spec: ChainSpec) -> Float64:
    """Return the shares of noise [S]: those of the plan, shifted, or those of the schedule and its spacing.

    As in diffusers, the smallest of the schedule is shifted twice.
    """
    schedule = spec.schedule
    if spec.sigmas is not None:
        return shifted(spec.sigmas, schedule.shift)
    least = shifted(np.array(1 / schedule.num_train_timesteps), schedule.shift)
    sigma = shifted(np.linspace(1.0, least, spec.steps), schedule.shift)
    spaced = spaced_levels(schedule, float(sigma[0]), float(sigma[-1]), spec.steps)
    return sigma if spaced is None else spaced


def shifted(sigma: Float64, shift: float) -> Float64:
    """Return shares of noise, shifted towards 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)
