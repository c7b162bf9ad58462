"""Means and variances brought back to those of the full-precision chain, against the steps themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calib.correction.accumulated import ENDS, check_accumulated, look_ahead, restored
from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from engines.arrays import Float32, Float64
from engines.errors import UsageError
from engines.samplers import NoiseSchedule, compile_sampler
from engines.samplers.table import TableStep

STEP = TableStep(
    timestep=500.0, alpha_bar=0.4, x_coeff=1.1, out_coeff=-0.4, prediction_coeffs=(1.5, -0.7), epsilon_coeffs=(0.0, 1.0),
    history_coeffs=(), sigma=0.0, input_scale=1.0, clip=None,
)  # fmt: skip
SECOND = replace(STEP, history_coeffs=(0.0, -0.3))
AFFINE = Affine(np.array([0.9, 1.2]), np.array([0.3, -0.1]), np.array([0.0, 0.15]))
X, Q, M, EXACT = (np.float32(spread * values + shift) for spread, shift, values in zip(
    (1.0, 0.8, 0.5, 1.3), (0.2, 0.0, 0.1, -0.4), np.random.default_rng(0).standard_normal((4, 64, 2, 16)), strict=True
))  # fmt: skip


def _corrected(affine: Affine) -> Float32:
    gain, offset, state_gain = (part.reshape(1, -1, 1) for part in (affine.gain, affine.offset, affine.state_gain))
    return np.asarray(gain * Q + offset + state_gain * X, np.float32)


def _end(step: TableStep, affine: Affine) -> Float64:
    """`A x + B e' + H_1 m`."""
    history = step.history_coeffs[1] * M if step.history_coeffs else 0.0
    return np.asarray(step.x_coeff * X + step.out_coeff * _corrected(affine) + history, np.float64)


@pytest.mark.parametrize("step", [STEP, SECOND], ids=["first order", "with history"])
def test_a_step_ends_with_the_mean_and_the_variance_of_the_other_chain_in_every_channel(step: TableStep) -> None:
    end, exact = _end(step, AFFINE), EXACT.astype(np.float64)
    values = np.stack([look_ahead(X, _corrected(AFFINE), step), end, exact])
    after = _end(step, restored(AFFINE, step, Moments.of(ENDS, values, np.arange(64) % 4)))
    assert np.abs(end.var(axis=(0, 2)) / exact.var(axis=(0, 2)) - 1).min() > 0.05
    np.testing.assert_allclose(after.mean(axis=(0, 2)), exact.mean(axis=(0, 2)), atol=1e-6)
    np.testing.assert_allclose(after.var(axis=(0, 2)), exact.var(axis=(0, 2)), rtol=1e-5)


def test_without_a_history_the_whole_state_is_scaled() -> None:
    end, exact = _end(STEP, AFFINE), EXACT.astype(np.float64)
    values = np.stack([look_ahead(X, _corrected(AFFINE), STEP), end, exact])
    after = _end(STEP, restored(AFFINE, STEP, Moments.of(ENDS, values, np.arange(64) % 4)))
    scale = (exact.std(axis=(0, 2)) / end.std(axis=(0, 2))).reshape(1, -1, 1)
    expected = scale * (end - end.mean(axis=(0, 2), keepdims=True)) + exact.mean(axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_a_chain_that_is_where_it_should_be_stays_as_it_is() -> None:
    end = _end(SECOND, AFFINE)
    values = np.stack([look_ahead(X, _corrected(AFFINE), SECOND), end, end])
    found = restored(AFFINE, SECOND, Moments.of(ENDS, values, np.arange(64) % 4))
    for name in ("gain", "offset", "state_gain"):
        np.testing.assert_allclose(getattr(found, name), getattr(AFFINE, name), atol=1e-12)


@pytest.mark.parametrize(
    ("trajectory", "policy", "clip", "named"),
    [("fp", "fixed", False, "trajectory"), ("quantized", "budget", False, "budget"), ("quantized", "fixed", True, "clipping")],
)
def test_chains_without_an_accumulated_error_to_correct_are_refused(trajectory: str, policy: str, clip: bool, named: str) -> None:
    table = compile_sampler("ddim", 4, 0.0, NoiseSchedule(clip_sample=clip))
    with pytest.raises(UsageError, match=named):
        check_accumulated(table, trajectory, policy)


def test_other_chains_are_taken() -> None:
    check_accumulated(compile_sampler("dpm++2m", 4, 0.0, NoiseSchedule()), "quantized", "snr")
