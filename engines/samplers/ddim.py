"""DDIM: Song, Meng and Ermon 2020, arXiv 2010.02502, equations 12 and 16."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64, Int64
from engines.samplers.first_order import first_order_table
from engines.samplers.noise_schedule import NoiseSchedule
from engines.samplers.parameterization import epsilon_coeffs
from engines.samplers.table import SamplerTable
from engines.samplers.timesteps import timesteps


def compile_ddim(steps: int, eta: float, schedule: NoiseSchedule, alphas: Float64) -> SamplerTable:
    """`x <- sqrt(a_prev) x0 + sqrt(1 - a_prev - sigma^2) eps + sigma z`, deterministic at eta 0, ancestral at eta 1.

    With clipping the direction keeps the network's own `eps`, not the one of the clipped `x0`, as diffusers does unless asked
    for `use_clipped_model_output`.
    """
    t = timesteps(schedule, steps)
    a, a_prev = alphas[t], _previous_alpha_bar(t, schedule, steps, alphas)
    sigma = eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
    # At eta 1 and a = 0 the difference is zero in exact arithmetic, and may round below it.
    direction = np.sqrt(np.maximum(1 - a_prev - sigma**2, 0))
    R, T = epsilon_coeffs(schedule.prediction_type, a).T
    return first_order_table("ddim", schedule, t, a, C=np.sqrt(a_prev), D=direction * R, E=direction * T, sigma=sigma)


def _previous_alpha_bar(t: Int64, schedule: NoiseSchedule, steps: int, alphas: Float64) -> Float64:
    """Cumulative alpha [S] that each step goes to: that of `t - T // S`, as in diffusers.

    Under leading spacing that is the next timestep of the walk; under the other two it may be a neighbour of it.
    """
    previous = t - schedule.num_train_timesteps // steps
    final = 1.0 if schedule.set_alpha_to_one else alphas[0]
    return np.where(previous >= 0, alphas[previous.clip(0)], final)
