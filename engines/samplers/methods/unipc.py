"""UniPC: Zhao et al. 2023, arXiv 2302.04867, algorithms 5 and 6 (predictions of the clean sample), in second and third order.

A step first corrects the state with the new prediction `m_i`, and then predicts the next state. With `h = lambda_next - lambda`,
`r_j = (lambda_{i-j} - lambda_i) / h`, and a function `B` that behaves as `h` does,

    predictor:  x_next = (sigma_next / sigma) xc - alpha_next ((e^-h - 1) m_i + B sum_j rho_j (m_{i-j} - m_i) / r_j)

The corrector repeats the previous step with one difference more, that of the new prediction, at `r = 1`. It starts from the corrected state
before it, as the predictor did, so that the corrected state is the predicted one plus the change of the sum over the predictions:

    corrector:  xc = x - alpha (B sum_j rho^c_j (m_j - m_{i-1}) / r_j  -  B sum_j rho_j (m_j - m_{i-1}) / r_j)

Both are one row of a table: a sampler of order p looks back on p predictions.
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.samplers.build_table import build_table
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.noise_levels import alpha_bar_of
from engines.samplers.methods.multistep_levels import unipc_levels
from engines.samplers.table import SamplerTable


def compile_unipc_2(spec: ChainSpec) -> SamplerTable:
    """Compile second order."""
    return _compile(spec, 2)


def compile_unipc_3(spec: ChainSpec) -> SamplerTable:
    """Compile third order."""
    return _compile(spec, 3)


def _compile(spec: ChainSpec, order: int) -> SamplerTable:
    visited, S = unipc_levels(spec), spec.steps
    alpha, level = visited.alpha, visited.level
    with np.errstate(divide="ignore"):
        lambda_ = -np.log(level)  # infinite at the clean sample
    orders = [_order(spec, order, i, level[i + 1]) for i in range(S)]
    D = alpha[1:] * level[1:] / (alpha[:-1] * level[:-1])
    C = np.zeros((S, order + 1))
    for i in range(S):
        if i > spec.first:
            C[i] = D[i] * alpha[i] * _correction(lambda_, i, orders[i - 1], order, spec)
        C[i, : orders[i]] += alpha[i + 1] * _prediction(lambda_, i, orders[i], spec)
    return build_table(
        spec, visited.timestep, alpha_bar_of(level[:-1]), C=C[:, : min(order, S - 1) + 1], D=D, E=np.zeros(S), sigma=np.zeros(S),
        scale=visited.scale, input_scale=np.ones(S),
    )  # fmt: skip


def _order(spec: ChainSpec, order: int, i: int, level_next: float) -> int:
    """Return the order of step `i`: what there is to look back on and, at the end of the chain, to look forward to.

    A step to the clean sample is of first order, where diffusers without `lower_order_final` computes NaN.
    """
    if level_next == 0:
        return 1
    return min(order, max(i - spec.first, 0) + 1, spec.steps - i if spec.schedule.lower_order_final else order)


def _prediction(lambda_: Float64, i: int, order: int, spec: ChainSpec) -> Float64:
    """Return the coefficients of `m_i, m_{i-1}, ...` in `x_next / alpha_next`, [order]."""
    h = lambda_[i + 1] - lambda_[i]
    of_differences = _of_differences(h, (lambda_[i - np.arange(1, order)] - lambda_[i]) / h, spec)
    return -np.array([np.expm1(-h) - of_differences.sum(), *of_differences])


def _correction(lambda_: Float64, i: int, order: int, most: int, spec: ChainSpec) -> Float64:
    """Return the coefficients of `m_i, m_{i-1}, ...` in `(xc - x) / alpha`, [most + 1]: those of the corrector less the predictor's."""
    h = lambda_[i] - lambda_[i - 1]
    r = (lambda_[i - np.arange(2, order + 1)] - lambda_[i - 1]) / h
    *earlier, newest = _of_differences(h, np.append(r, 1.0), spec)
    change = np.array(earlier) - _of_differences(h, r, spec)
    coefficients = np.zeros(most + 1)
    coefficients[: order + 1] = [-newest, newest + change.sum(), *-change]
    return coefficients


def _of_differences(h: float, r: Float64, spec: ChainSpec) -> Float64:
    """Return `B rho_j / r_j` [J], with the `rho` for which the step is exact for polynomials; a single one is a half, as in the paper."""
    B = -h if spec.schedule.solver_type == "bh1" else np.expm1(-h)
    if len(r) < 2:
        return B * 0.5 / r
    powers = np.arange(len(r))
    return B * np.linalg.solve(r ** powers[:, None], _right_side(h, len(r)) / B) / r


def _right_side(h: float, count: int) -> Float64:
    """Return `z phi_{k+1}(z) k!` [count] at `z = -h`; `phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z` and `phi_1(z) = (e^z - 1) / z`."""
    z, factorial, values = -h, 1.0, []
    rest = np.expm1(z) / z - 1
    for k in range(1, count + 1):
        values.append(rest * factorial)
        factorial *= k + 1
        rest = rest / z - 1 / factorial
    return np.array(values)
