"""Takes variance that the fresh noise could not give up out of the deterministic part of a step, along the predicted noise.

A step ends at `y = A x + B e' + sum_j H_j m_{i-j}`, with the corrected output `e'` and the predicted noise `eps' = R x + T e'`. A share
`kappa` of that noise is taken out of the output:

    e'' = e' - kappa (eps' - E_c[eps'])        so that        A x + B e'' + sum_j H_j m_{i-j} = y - kappa B (eps' - E_c[eps'])

Quantization noise then stands in for part of the noise that the step keeps. `e''` is again affine in the output and the state, so the
schedule needs nothing new. A multistep sampler keeps the prediction of `e''` in its history; the next step of a walk starts from this
history, so its own share answers for what comes back.

Two rules give the share: the variance itself (`matched_share`), and that of Q-Drift (`q_drift_share`; Ryu, Salzmann and Javed 2026, arXiv
2603.18095), which takes the error of quantization for the noise of a stochastic sampler and adds the drift that belongs to it.
"""

from __future__ import annotations

import math

import numpy as np

from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from calib.correction.noise_fit import ratio
from calib.correction.step_change import measured_excess
from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers import SAMPLERS, SamplerTable, TableStep


def without_noise(affine: Affine, step: TableStep, kappa: float, mean_noise: Float64) -> Affine:
    """Return the correction `e'' = e' - kappa (eps' - mean_noise)`, given the means [C] of `eps'`."""
    R, T = step.epsilon_coeffs
    kept = 1 - kappa * T
    return Affine(kept * affine.gain, kept * affine.offset + kappa * mean_noise, kept * affine.state_gain - kappa * R)


def excess_without(change: Moments, step: TableStep, kappa: float) -> float:
    """Return the variance that quantization adds to the mean of a step without the share `kappa`, from moments of `STEP_CHANGE`."""
    without = np.array([[1.0, 0, 0], [0, 1, -kappa * step.out_coeff], [0, 0, 1]])
    return measured_excess(change.project(without, change.variables))


def matched_share(change: Moments, step: TableStep, excess: float) -> float:
    """Return the share that takes `excess` out of the variance of a step: `delta / B`, with `delta` the root nearer to 0 of

        Var(y) - 2 delta Cov(y, eps') + delta^2 Var(eps') = Var(y) - excess

    and variances averaged over channels. If the noise in the step cannot give up as much, `delta` leaves the least variance.
    """
    covariance = float(np.mean(change.covariance("mean", "noise") + change.covariance("change", "noise")))
    variance = float(np.mean(change.variance("noise")))
    if excess <= 0 or covariance == 0:
        return 0.0
    within = covariance**2 - excess * variance
    delta = excess / (covariance + math.copysign(math.sqrt(within), covariance)) if within >= 0 else covariance / variance
    return delta / step.out_coeff


def q_drift_share(change: Moments, step: TableStep) -> float:
    """Return the share of Q-Drift, of first order in the variance `u` of the change that `eps'` does not predict.

    From states `alpha_s x0 + sigma_s eps` to `alpha_t x0 + sigma_t eps`, noise of variance `u` belongs to a drift

        delta = u / (alpha_t (sigma_s / alpha_s + sigma_t / alpha_t))

    which multiplies the increment `(sigma_t / alpha_t - sigma_s / alpha_s) eps'` of `x / alpha` by the paper's factor for DPM-Solver++. In
    a multistep sampler, the factor applies to the earlier predictions in the increment too: `delta` is spread over all coefficients of
    the output, `B + Q sum_j H_j`.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = levels(step)
    u = change.variance("change") - ratio(change.covariance("change", "noise") ** 2, change.variance("noise"))
    delta = float(np.mean(u)) * alpha_s / (alpha_t * sigma_s + alpha_s * sigma_t)
    return delta / (step.out_coeff + step.prediction_coeffs[1] * sum(step.history_coeffs))


def levels(step: TableStep) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return `(alpha, sigma)` of the states `alpha x0 + sigma eps` that a step starts from and goes to."""
    unmixing = np.array([step.prediction_coeffs, step.epsilon_coeffs]).T
    P, Q = step.prediction_coeffs
    ahead = sum(step.history_coeffs)
    alpha_s, sigma_s = np.linalg.solve(unmixing, [1.0, 0.0]).tolist()
    alpha_t, sigma_t = np.linalg.solve(unmixing, [step.x_coeff + ahead * P, step.out_coeff + ahead * Q]).tolist()
    return (alpha_s, sigma_s), (alpha_t, sigma_t)


def check_drift(table: SamplerTable, variance: str) -> None:
    """Raises UsageError if the predicted noise cannot be taken out of the steps of a chain through its outputs."""
    if table.clip is not None:
        raise UsageError(
            "The predicted noise cannot be taken out of steps with clipping.",
            found=f'variance "{variance}" with {table.name} and clipping',
            expected='a sampler without clipping, or variance "schedule"',
            mend="set sampler.clip_sample to false, if the model samples well without it",
        )
    if not table.out_coeff.all():
        raise UsageError(
            "The predicted noise cannot be taken out of a step that does not use the output.",
            found=f'variance "{variance}" with {table.name}, step {int(np.argmin(np.abs(table.out_coeff)))}',
            expected='another sampler, or variance "schedule"',
        )
    if variance == "q-drift" and not SAMPLERS[table.name].predicts_clean:
        raise UsageError(
            "Q-Drift needs the clean sample that a step predicts.",
            found=f'variance "q-drift" with {table.name}',
            expected='another sampler, or variance "drift"',
        )
    if variance == "q-drift" and not all(_moves(table.step(i)) for i in range(table.steps)):
        raise UsageError(
            "Q-Drift needs a step that ends at another noise level than it starts from.",
            found=f'variance "q-drift" with {table.name}',
            expected='another sampler, or variance "drift"',
        )


def _moves(step: TableStep) -> bool:
    """Whether a step whose predictions were all the present one would depend on the output. The second half of Heun's step would not."""
    of_history = step.prediction_coeffs[1] * sum(step.history_coeffs)
    return not math.isclose(step.out_coeff, -of_history, rel_tol=1e-9)
