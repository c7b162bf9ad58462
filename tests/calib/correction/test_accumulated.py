"""Means and variances brought back to those of the full-precision chain, against the steps themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calib.correction.accumulated import ENDS, look_ahead, obstacle, restored
from calib.correction.correction_fit import Affine
from calib.correction.moments import Moments
from engines.arrays import Float32, Float64
from engines.samplers import NoiseSchedule, compile_sampler
from engines.samplers.table import TableStep

STEP = TableStep(
    timestep=500.0, alpha_bar=0.4, x_coeff=1.1, out_coeff=-0.4, prediction_coeffs=(1.5, -0.7), epsilon_coeffs=(0.0, 1.0),
    history_coeffs=(), sigma=0.0, input_scale=1.0, clip=None,
)  # fmt: skip
SECOND = replace(STEP, history_coeffs=(0.0, -0.3))
AFFINE = Affine(np.array([0.9, 1.2]), np.array([0.3, -0.1]), np.array([0.0, 0.15]))
DRAWN = np.random.default_rng(0).standard_normal((4, 64, 2, 16))
X: Float32 = np.asarray(DRAWN[0] + 0.2, np.float32)
Q: Float32 = np.asarray(0.8 * DRAWN[1], np.float32)
M: Float32 = np.asarray(0.5 * DRAWN[2] + 0.1, np.float32)
EXACT: Float64 = 1.3 * DRAWN[3] - 0.4


def _corrected(affine: Affine) -> Float32:
    gain, offset, state_gain = (part.reshape(1, -1, 1) for part in (affine.gain, affine.offset, affine.state_gain))
    return np.asarray(gain * Q + offset + state_gain * X, np.float32)


def _end(step: TableStep, affine: Affine) -> Float64:
    """`A x + B e' + H_1 m`."""
    history = step.history_coeffs[1] * M if step.history_coeffs else 0.0
    return np.asarray(step.x_coeff * X + step.out_coeff * _corrected(affine) + history, np.float64)


def _ends(step: TableStep, end: Float64, exact: Float64) -> Moments:
    return Moments.of(ENDS, np.stack([look_ahead(X, _corrected(AFFINE), step), end, exact]), np.arange(64) % 4)


@pytest.mark.parametrize("step", [STEP, SECOND], ids=["first order", "with history"])
def test_a_step_ends_with_the_mean_and_the_variance_of_the_other_chain_in_every_channel(step: TableStep) -> None:
    end = _end(step, AFFINE)
    after = _end(step, restored(AFFINE, step, _ends(step, end, EXACT)))
    assert np.abs(end.var(axis=(0, 2)) / EXACT.var(axis=(0, 2)) - 1).min() > 0.05
    np.testing.assert_allclose(after.mean(axis=(0, 2)), EXACT.mean(axis=(0, 2)), atol=1e-6)
    np.testing.assert_allclose(after.var(axis=(0, 2)), EXACT.var(axis=(0, 2)), rtol=1e-5)


def test_without_a_history_the_whole_state_is_scaled() -> None:
    end = _end(STEP, AFFINE)
    after = _end(STEP, restored(AFFINE, STEP, _ends(STEP, end, EXACT)))
    scale = (EXACT.std(axis=(0, 2)) / end.std(axis=(0, 2))).reshape(1, -1, 1)
    expected = scale * (end - end.mean(axis=(0, 2), keepdims=True)) + EXACT.mean(axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_a_chain_that_is_where_it_should_be_stays_as_it_is() -> None:
    end = _end(SECOND, AFFINE)
    found = restored(AFFINE, SECOND, _ends(SECOND, end, end))
    for name in ("gain", "offset", "state_gain"):
        np.testing.assert_allclose(getattr(found, name), getattr(AFFINE, name), atol=1e-12)


@pytest.mark.parametrize(
    ("trajectory", "policy", "clip", "named"),
    [("fp", "fixed", False, "trajectory"), ("quantized", "budget", False, "budget"), ("quantized", "fixed", True, "clipping")],
)
def test_chains_without_an_accumulated_error_to_correct_are_refused(trajectory: str, policy: str, clip: bool, named: str) -> None:
    table = compile_sampler("ddim", 4, 0.0, NoiseSchedule(clip_sample=clip))
    assert named in str(obstacle(table, trajectory, policy))


def test_other_chains_are_taken() -> None:
    assert obstacle(compile_sampler("dpm++2m", 4, 0.0, NoiseSchedule()), "quantized", "snr") is None
