"""PLMS, the multistep part of PNDM: Liu et al. 2022, arXiv 2202.09778, equations 9 and 12, as in latent diffusion.

Each step is DDIM's, with the output replaced by an Adams-Bashforth combination of the last four outputs. The first step is taken twice: a
trial step leads to the point where the second output is evaluated, then the step is repeated from the start with the mean of both outputs.
So a chain of S steps has a table of S + 1 rows. Row 1 starts from the trial's result and needs no stored state, because the trial
`x_1 = A_0 x_0 + B_0 m_0` can be solved for `x_0`. The output of row 1 is only used in this mean; later rows skip it.

A step's history entry `m_i` is the output itself.
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64, Int64
from engines.errors import UsageError
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_schedule import NoiseSchedule
from engines.samplers.levels.parameterization import epsilon_coeffs, prediction_coeffs
from engines.samplers.levels.timesteps import timesteps
from engines.samplers.methods.ddim import alpha_bar_at, stride
from engines.samplers.table import SamplerTable

# Weights of the outputs m_i, m_{i-1}, ... in rows 0, 1, ...; all later rows use the last entry. m_1 belongs to the repeated first step.
_WEIGHTS = (
    np.array([1.0, 0, 0, 0, 0]),
    np.array([1.0, 1, 0, 0, 0]) / 2,
    np.array([3.0, 0, -1, 0, 0]) / 2,
    np.array([23.0, -16, 0, 5, 0]) / 12,
    np.array([55.0, -59, 37, 0, -9]) / 24,
    np.array([55.0, -59, 37, -9, 0]) / 24,
)


def rows_of_plms(steps: int) -> int:
    """Return the number of rows: one more than `steps`, except that a single step is not repeated."""
    return steps + 1 if steps > 1 else 1


def compile_plms(spec: ChainSpec) -> SamplerTable:
    """Compile PNDM without its Runge-Kutta steps.

    Raises:
        UsageError: the model's scheduler uses Runge-Kutta steps.
    """
    schedule, alphas = spec.schedule, spec.alphas
    _refuse_runge_kutta(schedule)
    t = timesteps(schedule, spec.steps)
    visited = np.concatenate([t[:2], t[1:]])
    begin, end = _legs(t, stride(schedule, spec.steps))
    A, B = _ddim_coeffs(schedule, alphas[begin], alpha_bar_at(end, spec))
    weights = np.stack([_WEIGHTS[min(row, len(_WEIGHTS) - 1)] for row in range(len(visited))])[:, : len(visited)]
    history = B[:, None] * weights
    if len(visited) > 1:
        # x_0 = (x_1 - B_0 m_0) / A_0
        A[1], history[1, 1] = A[1] / A[0], history[1, 1] - A[1] * B[0] / A[0]
    out_coeff = history[:, 0].copy()
    history[:, 0] = 0
    return SamplerTable(
        name=spec.name,
        timestep=visited.astype(np.float64),
        alpha_bar=alphas[visited],
        x_coeff=A,
        out_coeff=out_coeff,
        prediction_coeffs=np.tile([0.0, 1.0], (len(visited), 1)),
        epsilon_coeffs=epsilon_coeffs(schedule.prediction_type, alphas[visited]),
        history_coeffs=history,
        sigma=np.zeros(len(visited)),
        input_scale=np.ones(len(visited)),
        init_sigma=1.0,
        clip=None,
        state_scale=np.ones(len(visited)),
    )


def _legs(t: Int64, stride: int) -> tuple[Int64, Int64]:
    """Return the timesteps where each row's step begins and ends. Row 1 ends where the second step begins, and begins one stride above."""
    begin, end = np.concatenate([t[:1], t[1:2] + stride, t[1:]]), np.concatenate([t[:1] - stride, t[1:2], t[1:] - stride])
    return begin, end


def _ddim_coeffs(schedule: NoiseSchedule, a: Float64, a_next: Float64) -> tuple[Float64, Float64]:
    """Return `(A, B)` with `sqrt(a_next) x0 + sqrt(1 - a_next) eps = A x + B out`."""
    of_clean, of_noise = prediction_coeffs(schedule.prediction_type, a), epsilon_coeffs(schedule.prediction_type, a)
    A, B = (np.sqrt(a_next)[:, None] * of_clean + np.sqrt(1 - a_next)[:, None] * of_noise).T
    return A.copy(), B


def _refuse_runge_kutta(schedule: NoiseSchedule) -> None:
    if not schedule.skip_prk_steps:
        raise UsageError(
            "The sampler plms has no Runge-Kutta steps: they evaluate each of three steps four times and would store twelve outputs.",
            found="skip_prk_steps = false in the model's scheduler",
            expected="skip_prk_steps = true",
            mend="set skip_prk_steps to true in scheduler_config.json, or use the sampler ddim or dpm++2m",
        )
