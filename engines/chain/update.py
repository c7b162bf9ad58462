"""The mean of a denoising step, `x <- A x + B e' + sum_j H_j m_{i-j}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from engines.arrays import Float32


class UpdateCoefficients(Protocol):
    """The coefficients of a step that `update` needs; `engines.samplers.table` defines them."""

    @property
    def x_coeff(self) -> float: ...
    @property
    def out_coeff(self) -> float: ...
    @property
    def prediction_coeffs(self) -> tuple[float, float]: ...
    @property
    def history_coeffs(self) -> tuple[float, ...]: ...
    @property
    def clip(self) -> float | None: ...


def predict(x: Float32, out: Float32, step: UpdateCoefficients) -> Float32:
    """Return the predicted clean sample `m = P x + Q out`, clipped if the step says so."""
    P, Q = step.prediction_coeffs
    m = P * x + Q * out
    return m if step.clip is None else np.clip(m, -step.clip, step.clip)


def update(x: Float32, out: Float32, step: UpdateCoefficients, history: Sequence[Float32]) -> tuple[Float32, list[Float32]]:
    """Return the mean of the next state, before fresh noise, and the history to pass to the next call.

    Args:
        x: state [batch, channels, ...].
        out: corrected network output, same shape.
        step: coefficients of the step.
        history: earlier predictions `m_{i-1}, m_{i-2}, ...`; at the start of the chain fewer than the sampler's order.
    """
    mean = step.x_coeff * x
    mean += step.out_coeff * out
    if not step.history_coeffs:
        return mean, []
    predictions = [predict(x, out, step), *history][: len(step.history_coeffs)]
    for H, m in zip(step.history_coeffs, predictions, strict=False):
        mean += H * m
    return mean, predictions
