"""Tables of samplers that look back on no earlier prediction: `x <- C x0 + D x + E out + sigma z`."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64, Int64
from engines.samplers.noise_schedule import NoiseSchedule
from engines.samplers.parameterization import epsilon_coeffs, prediction_coeffs
from engines.samplers.table import SamplerTable


def first_order_table(
    name: str, schedule: NoiseSchedule, timesteps: Int64, alpha_bar: Float64, *, C: Float64, D: Float64, E: Float64, sigma: Float64
) -> SamplerTable:
    """The table of a sampler given by [S] arrays; `alpha_bar` is that of each step.

    A clipped prediction is not linear in `x` and `out`, so `C` then becomes the coefficient `H_0` of `m_i`. Without clipping it
    is folded into `A = D + C P` and `B = E + C Q`, and the sampler needs no prediction.
    """
    P, Q = prediction_coeffs(schedule.prediction_type, alpha_bar).T
    clipped = schedule.clip is not None
    return SamplerTable(
        name=name,
        timestep=timesteps.astype(np.float64),
        alpha_bar=alpha_bar,
        x_coeff=D if clipped else D + C * P,
        out_coeff=E if clipped else E + C * Q,
        prediction_coeffs=np.stack([P, Q], axis=1),
        epsilon_coeffs=epsilon_coeffs(schedule.prediction_type, alpha_bar),
        history_coeffs=C[:, None] if clipped else np.empty((len(C), 0)),
        sigma=sigma,
        input_scale=np.ones(len(C)),
        init_sigma=1.0,
        clip=schedule.clip,
    )
