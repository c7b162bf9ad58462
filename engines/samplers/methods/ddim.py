"""DDIM: Song, Meng and Ermon 2020, arXiv 2010.02502, equations 12 and 16."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64, Int64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_schedule import NoiseSchedule
from engines.samplers.levels.parameterization import epsilon_coeffs
from engines.samplers.levels.timesteps import timesteps
from engines.samplers.table import SamplerTable


def compile_ddim(spec: ChainSpec) -> SamplerTable:
    """Compile `x <- sqrt(a_prev) x0 + sqrt(1 - a_prev - sigma^2) eps + sigma z`: deterministic at eta 0, ancestral at eta 1.

    With clipping, the direction keeps the network's own `eps` instead of the one implied by the clipped `x0`, as diffusers does without
    `use_clipped_model_output`.
    """
    schedule = spec.schedule
    t = timesteps(schedule, spec.steps)
    a, a_prev = spec.alphas[t], alpha_bar_at(t - stride(schedule, spec.steps), spec)
    sigma = spec.eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
    # At eta 1 and a = 0 the difference is zero in exact arithmetic, and rounding may make it negative.
    direction = np.sqrt(np.maximum(1 - a_prev - sigma**2, 0))
    R, T = epsilon_coeffs(schedule.prediction_type, a).T
    return build_table(spec, t, a, C=np.sqrt(a_prev), D=direction * R, E=direction * T, sigma=sigma, clip=schedule.clip)


def stride(schedule: NoiseSchedule, steps: int) -> int:
    """Return how many training timesteps one step goes down, as in diffusers.

    With leading spacing the step ends at the chain's next timestep; with the other two spacings it may end at a neighbouring timestep.
    """
    return schedule.num_train_timesteps // steps


def alpha_bar_at(t: Int64, spec: ChainSpec) -> Float64:
    """Return the cumulative alphas [S] at timesteps `t`. The last timestep may be below 0, which is the end of the chain."""
    final = 1.0 if spec.schedule.set_alpha_to_one else spec.alphas[0]
    return np.where(t >= 0, spec.alphas[t.clip(0)], final)
