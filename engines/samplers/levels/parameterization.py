"""Affine maps from the state and the network's output to the clean sample and to the noise.

With `x = sqrt(a) x0 + sqrt(1 - a) eps` and `a` the cumulative alpha, the network's output is one of

    epsilon:       eps                                 (Ho et al. 2020, arXiv 2006.11239)
    v_prediction:  sqrt(a) eps - sqrt(1 - a) x0        (Salimans and Ho 2022, arXiv 2202.00512)
    sample:        x0
    flow:          eps - x0                            (Lipman et al. 2022, arXiv 2210.02747, the optimal-transport path)
"""

from __future__ import annotations

import numpy as np

from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers.levels.noise_schedule import PredictionType


def prediction_coeffs(prediction_type: PredictionType, alpha_bar: Float64) -> Float64:
    """Return `(P, Q)` [S, 2] with `x0 = P x + Q out`, at cumulative alphas [S].

    Raises:
        UsageError: the model predicts epsilon and an `alpha_bar` is 0: the noise alone says nothing about the clean sample.
    """
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    match prediction_type:
        case "epsilon":
            _require_signal(alpha_bar)
            return np.stack([1 / signal, -noise / signal], axis=1)
        case "v_prediction":
            return np.stack([signal, -noise], axis=1)
        case "sample":
            return np.stack([np.zeros_like(signal), np.ones_like(signal)], axis=1)
        case "flow":
            return np.stack([1 / (signal + noise), -noise / (signal + noise)], axis=1)


def epsilon_coeffs(prediction_type: PredictionType, alpha_bar: Float64) -> Float64:
    """Return `(R, T)` [S, 2] with `eps = R x + T out`, at cumulative alphas [S]."""
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    match prediction_type:
        case "epsilon":
            return np.stack([np.zeros_like(signal), np.ones_like(signal)], axis=1)
        case "v_prediction":
            return np.stack([noise, signal], axis=1)
        case "sample":
            return np.stack([1 / noise, -signal / noise], axis=1)
        case "flow":
            return np.stack([1 / (signal + noise), signal / (signal + noise)], axis=1)


def _require_signal(alpha_bar: Float64) -> None:
    if np.any(alpha_bar == 0):
        raise UsageError(
            "A model that predicts epsilon cannot start from pure noise.",
            found="alpha_bar = 0 at the first step (rescale_betas_zero_snr)",
            expected="prediction_type v_prediction or sample, or a schedule that keeps some signal",
            mend="set rescale_betas_zero_snr to false, or timestep_spacing to leading with fewer steps than training timesteps",
        )
