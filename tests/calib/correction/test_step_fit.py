"""What a schedule holds of a step, by the arithmetic of this test."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from calib.correction.correction_fit import Affine, Mode
from calib.correction.moments import PLAIN, Moments
from calib.correction.step_change import STEP_CHANGE
from calib.correction.step_fit import CorrectionChoice, fit_step, is_linear
from engines.arrays import Float64
from engines.samplers.table import TableStep

STEP = TableStep(
    timestep=500.0, alpha_bar=0.4, x_coeff=1.1, out_coeff=-0.4, prediction_coeffs=(1.0, 0.0), epsilon_coeffs=(0.0, 1.0),
    history_coeffs=(), sigma=0.3, input_scale=1.0, clip=None,
)  # fmt: skip


def _values() -> Float64:
    """`e` follows `x`, and `d` follows `e`."""
    x, z, n = np.random.default_rng(0).standard_normal((3, 64, 2, 16))
    e = 0.9 * x + 0.3 * z
    return np.stack([x, e, 0.15 * e + 0.1 + 0.2 * n])


def _moments() -> Moments:
    return Moments.of(PLAIN, _values(), np.arange(64) % 4)


def _corrected(affine: Affine) -> Float64:
    x, e, d = _values()
    gain, offset, state_gain = (part.reshape(1, -1, 1) for part in (affine.gain, affine.offset, affine.state_gain))
    corrected: Float64 = gain * (e + d) + offset + state_gain * x
    return corrected


def _variance(values: Float64) -> float:
    return float(values.var(axis=(0, 2)).mean())


@pytest.mark.parametrize("mode", get_args(Mode))
def test_sigma_gives_up_what_quantization_added_and_takes_nothing_on(mode: Mode) -> None:
    fit = fit_step(_moments(), STEP, CorrectionChoice(mode))
    x, e, _ = _values()
    v = _variance(_corrected(fit.affine) - e)
    general = _variance(1.1 * x - 0.4 * _corrected(fit.affine)) - _variance(1.1 * x - 0.4 * e)
    excess = 0.4**2 * v if mode == "ptqd" else general
    assert abs(0.4**2 * v - general) > 1e-4, "the two forms can be told apart"
    assert fit.residual_variance == pytest.approx(v, rel=1e-10)
    assert fit.sigma_corrected == pytest.approx(np.sqrt(0.3**2 - max(excess, 0)), rel=1e-10)
    assert fit.unabsorbed_variance == 0


def test_a_sampler_without_noise_absorbs_nothing() -> None:
    fit = fit_step(_moments(), replace(STEP, sigma=0.0, out_coeff=0.4), CorrectionChoice("none"))
    x, e, d = _values()
    assert fit.sigma_corrected == 0
    assert fit.unabsorbed_variance == pytest.approx(_variance(1.1 * x + 0.4 * (e + d)) - _variance(1.1 * x + 0.4 * e), rel=1e-10)
    assert fit.unabsorbed_variance > 0


def test_the_schedule_can_be_left_as_it_is() -> None:
    fit = fit_step(_moments(), replace(STEP, out_coeff=0.4), CorrectionChoice("none", variance="none"))
    assert fit.sigma_corrected == STEP.sigma
    assert fit.unabsorbed_variance > 0


def test_before_the_rest_is_shifted_the_noise_absorbs_what_it_can() -> None:
    fits = [
        fit_step(_moments(), replace(STEP, sigma=0.02, out_coeff=0.4), CorrectionChoice("none", name)) for name in ("schedule", "shift")
    ]
    assert fits[0].sigma_corrected == fits[1].sigma_corrected == 0
    assert fits[0].unabsorbed_variance == fits[1].unabsorbed_variance > 0


def test_parts_are_handed_on() -> None:
    fit = fit_step(_moments(), STEP, CorrectionChoice("mmse", parts=frozenset({"offset"})))
    assert fit.affine.gain.tolist() == [1.0, 1.0]


def _measured(affine: Affine) -> Moments:
    """Moments of a change of variance 0.05, uncorrelated with the mean, where a gain is applied."""
    mean, change = np.array([1.0, 1, -1, -1]), np.sqrt(0.05 * (affine.gain[0] < 1)) * np.array([1.0, -1, 1, -1])
    values = np.stack([mean, change, mean]).reshape(3, 4, 1, 1)
    return Moments.of(STEP_CHANGE, values, np.arange(4))


@pytest.mark.parametrize("mode", ["signed", "ptqd"])
def test_clipping_and_history_need_a_measured_variance(mode: Mode) -> None:
    step = replace(STEP, history_coeffs=(0.5,), clip=1.0)
    assert not is_linear(step)
    with pytest.raises(ValueError, match="measured"):
        fit_step(_moments(), step, CorrectionChoice(mode))
    fit = fit_step(_moments(), step, CorrectionChoice(mode), measure=_measured)
    assert fit.sigma_corrected == pytest.approx(np.sqrt(0.09 - 0.05))
