"""Build the table of a sampler written in predictions of the clean sample: `x <- sum_j C_j m_{i-j} + D x + E out + sigma z`."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64, Int64
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.parameterization import epsilon_coeffs, prediction_coeffs
from engines.samplers.table import SamplerTable


def build_table(
    spec: ChainSpec,
    timesteps: Float64 | Int64,
    alpha_bar: Float64,
    *,
    C: Float64,
    D: Float64,
    E: Float64,
    sigma: Float64,
    scale: Float64 | None = None,
    input_scale: Float64 | None = None,
    init_sigma: float = 1.0,
    clip: float | None = None,
) -> SamplerTable:
    """Build a table from the sampler's coefficients, all [S] unless stated otherwise.

    A clipped prediction is not linear in `x` and `out`, so with clipping `C_0` becomes the coefficient `H_0` of `m_i`. Without clipping,
    `C_0` is folded into `A = D + C_0 P` and `B = E + C_0 Q`. Earlier predictions keep their coefficients; a sampler without earlier
    predictions then needs no prediction at all.

    Args:
        spec: chain to compile; gives the sampler's name and the network's prediction type.
        timesteps: timesteps given to the network.
        alpha_bar: cumulative alpha of each step's state.
        C: [S] or [S, J] coefficients of the predictions `m_i, m_{i-1}, ...`.
        D: coefficients of the state.
        E: coefficients of the network's output.
        sigma: standard deviation of the fresh noise.
        scale: factor that turns the state into that of variance-preserving diffusion, `sqrt(a) x0 + sqrt(1 - a) eps`, which most networks
            take; None if the state has that form already.
        input_scale: factor that the network's input gets, if it is not `scale`.
        init_sigma: standard deviation of the first state, a scalar.
        clip: bound of the predictions, a scalar; None for no clipping.
    """
    C = C.reshape(len(C), -1)
    scale = np.ones(len(C)) if scale is None else scale
    # The maps apply to the sampler's own state, not to the scaled state that the network takes.
    in_state = np.stack([scale, np.ones(len(C))], axis=1)
    predictions = prediction_coeffs(spec.schedule.prediction_type, alpha_bar) * in_state
    P, Q = predictions.T
    folded = np.zeros(len(C)) if clip is not None else C[:, 0]
    history = np.column_stack([C[:, 0] - folded, C[:, 1:]])
    return SamplerTable(
        name=spec.name,
        timestep=timesteps.astype(np.float64),
        alpha_bar=alpha_bar,
        x_coeff=D + folded * P,
        out_coeff=E + folded * Q,
        prediction_coeffs=predictions,
        epsilon_coeffs=epsilon_coeffs(spec.schedule.prediction_type, alpha_bar) * in_state,
        history_coeffs=history if clip is not None or history.shape[1] > 1 else np.empty((len(C), 0)),
        sigma=sigma,
        input_scale=scale if input_scale is None else input_scale,
        init_sigma=init_sigma,
        clip=clip,
        state_scale=scale,
    )
