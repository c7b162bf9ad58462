"""Moments of a step's change against those of the steps themselves."""

from __future__ import annotations

import numpy as np
import pytest

from calib.correction.correction_fit import Affine
from calib.correction.moments import PLAIN, Moments
from calib.correction.step_change import STEP_CHANGE, measured_excess, step_change
from engines.arrays import Float64
from engines.samplers.table import TableStep

STEP = TableStep(
    timestep=500.0, alpha_bar=0.4, x_coeff=1.1, out_coeff=-0.3, prediction_coeffs=(1.0, 0.0), epsilon_coeffs=(0.6, 0.8),
    history_coeffs=(), sigma=0.0, input_scale=1.0, clip=None,
)  # fmt: skip
AFFINE = Affine(np.array([0.9, 1.2]), np.array([3.0, -1.0]), np.array([0.0, 0.15]))
FOLDS = np.arange(40) % 4


def _values() -> Float64:
    """`x, e, d` [3, 40, 2, 9], all correlated and with means."""
    mixing = np.array([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [0.05, 0.1, 0.1]])
    values: Float64 = np.tensordot(mixing, np.random.default_rng(0).standard_normal((3, 40, 2, 9)), axes=1) + 0.5
    return values


def _of_the_step() -> Float64:
    """`A x + B e`, `B (e' - e)` and `R x + T e'`."""
    x, e, d = _values()
    gain, offset, state_gain = (part.reshape(1, -1, 1) for part in (AFFINE.gain, AFFINE.offset, AFFINE.state_gain))
    corrected = gain * (e + d) + offset + state_gain * x
    return np.stack([1.1 * x - 0.3 * e, -0.3 * (corrected - e), 0.6 * x + 0.8 * corrected])


def test_the_moments_of_a_linear_step_follow_from_those_of_its_variables() -> None:
    found = step_change(Moments.of(PLAIN, _values(), FOLDS), AFFINE, STEP)
    expected = Moments.of(STEP_CHANGE, _of_the_step(), FOLDS)
    assert found.variables == STEP_CHANGE
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-9, atol=1e-12)


def test_the_excess_is_the_difference_of_the_variances_of_the_two_steps() -> None:
    mean, change, _ = _of_the_step()
    excess = np.mean((mean + change).var(axis=(0, 2)) - mean.var(axis=(0, 2)))
    assert abs(excess) > 0.01
    assert measured_excess(step_change(Moments.of(PLAIN, _values(), FOLDS), AFFINE, STEP)) == pytest.approx(excess, rel=1e-10)


def test_a_tiny_excess_is_not_lost_in_the_difference() -> None:
    x, e = np.zeros((8, 1, 1)), np.array([1.0, -1] * 4).reshape(8, 1, 1)
    d = 1e-12 * np.array([1.0, 1, -1, -1] * 2).reshape(8, 1, 1)
    moments = Moments.of(PLAIN, np.stack([x, e, d]), np.arange(8) % 4)
    assert measured_excess(step_change(moments, Affine.identity(1), STEP)) == pytest.approx(0.09e-24, rel=1e-9)
