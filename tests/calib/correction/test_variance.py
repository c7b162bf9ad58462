"""The calibrated noise against variances of the steps themselves, and against a Gaussian chain in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from calib.correction.correction_fit import Affine, Mode, fit_correction, residual_variance
from calib.correction.moments import PLAIN, Moments
from calib.correction.step_change import measured_excess, step_change
from calib.correction.step_fit import CorrectionChoice, fit_step
from calib.correction.variance import calibrate_sigma, keep_sigma, short_form_excess
from engines.arrays import Float64
from engines.samplers import NoiseSchedule, TableStep, compile_sampler
from engines.samplers.levels.noise_schedule import PredictionType


@pytest.mark.parametrize(
    ("sigma", "excess", "corrected", "unabsorbed"),
    [
        (0.5, 0.09, 0.4, 0.0),
        (0.5, 0.25, 0.0, 0.0),
        (0.5, 0.35, 0.0, 0.1),
        (0.5, -0.11, 0.5, 0.0),
        (0.0, 0.2, 0.0, 0.2),
        (0.0, -0.2, 0.0, 0.0),
    ],
)
def test_the_noise_gives_up_the_excess_as_far_as_it_can(sigma: float, excess: float, corrected: float, unabsorbed: float) -> None:
    calibrated = calibrate_sigma(sigma, excess)
    assert calibrated.sigma_corrected == pytest.approx(corrected)
    assert calibrated.unabsorbed_variance == pytest.approx(unabsorbed)
    assert calibrated.excess == excess


def test_a_kept_sigma_absorbs_nothing() -> None:
    kept = keep_sigma(0.5, 0.09)
    assert (kept.sigma_corrected, kept.unabsorbed_variance) == (0.5, 0.09)
    assert keep_sigma(0.5, -0.09).unabsorbed_variance == 0


# A chain without sampling error: x0 ~ N(0, S^2), DDIM in 20 steps at eta 1 on the linear schedule. There e = c x exactly, and with
# q = (1 + k) e + sqrt(s2) n every variance follows from that of x.
S, K, S2 = 0.5, -0.05, 0.09


def _ddim() -> tuple[Float64, Float64, Float64, Float64]:
    """`alpha_bar, A, B, sigma` [20]."""
    alpha_bar: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)[950::-50]
    previous = np.append(alpha_bar[1:], 1.0)
    sigma = np.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous))
    direction = np.sqrt(1 - previous - sigma**2)
    x_coeff = np.sqrt(previous / alpha_bar)
    return alpha_bar, x_coeff, direction - x_coeff * np.sqrt(1 - alpha_bar), sigma


def _exact_moments(c: float, variance: float) -> Moments:
    """Moments of `x, e, d` as an infinite sample would give them, the same in 4 folds."""
    mixing = np.array([[1, 0], [c, 0], [K * c, 1]])
    covariance = mixing @ np.diag([variance, S2]) @ mixing.T
    count = np.full(4, 1000)
    return Moments(PLAIN, count, count, np.zeros((4, 1, 3)), np.tile(1000 * covariance, (4, 1, 1, 1)))


def _general_form(moments: Moments, affine: Affine, x_coeff: float, out_coeff: float) -> float:
    step = TableStep(
        timestep=0.0, alpha_bar=0.5, x_coeff=x_coeff, out_coeff=out_coeff, prediction_coeffs=(1.0, 0.0), epsilon_coeffs=(0.0, 1.0),
        history_coeffs=(), sigma=0.0, input_scale=1.0, clip=None,
    )  # fmt: skip
    return measured_excess(step_change(moments, affine, step))


def _short_form(moments: Moments, affine: Affine, x_coeff: float, out_coeff: float) -> float:
    del x_coeff
    return short_form_excess(out_coeff, residual_variance(moments, affine))


def _signed_without_gate(moments: Moments) -> Affine:
    del moments
    return Affine(np.array([1 / (1 + K)]), np.zeros(1), np.zeros(1))


def _mode(mode: Mode) -> Callable[[Moments], Affine]:
    return lambda moments: fit_correction(moments, mode)


def _ratios(fit: Callable[[Moments], Affine], excess: Callable[[Moments, Affine, float, float], float]) -> Float64:
    """Variance of the state after each step, relative to that of the full-precision chain, by the arithmetic of this test."""
    variance = reference = 1.0
    ratios = []
    for a, x_coeff, out_coeff, sigma in zip(*_ddim(), strict=True):
        c = math.sqrt(1 - a) / (a * S**2 + 1 - a)
        moments = _exact_moments(c, variance)
        affine = fit(moments)
        gain = affine.gain[0]
        corrected = calibrate_sigma(sigma, excess(moments, affine, x_coeff, out_coeff)).sigma_corrected
        variance = (x_coeff + out_coeff * gain * (1 + K) * c) ** 2 * variance + (out_coeff * gain) ** 2 * S2 + corrected**2
        reference = (x_coeff + out_coeff * c) ** 2 * reference + sigma**2
        ratios.append(variance / reference)
    return np.array(ratios)


def test_uncorrected_variance_drifts() -> None:
    ratios = _ratios(_mode("none"), lambda *_: 0.0)
    assert ratios[4] == pytest.approx(1.227, abs=5e-4)


def test_the_short_form_fails_under_mmse() -> None:
    ratios = _ratios(_mode("mmse"), _short_form)
    assert ratios[4] == pytest.approx(1.181, abs=5e-4)
    assert ratios.min() > 1.1


@pytest.mark.parametrize("fit", [_mode("none"), _mode("signed"), _mode("mmse"), _signed_without_gate])
def test_the_general_form_holds_for_every_correction(fit: Callable[[Moments], Affine]) -> None:
    ratios = _ratios(fit, _general_form)
    np.testing.assert_allclose(ratios[:17], 1, rtol=1e-12)


def test_the_short_form_holds_for_an_uncorrelated_residual() -> None:
    ratios = _ratios(_signed_without_gate, _short_form)
    np.testing.assert_allclose(ratios[:17], 1, rtol=1e-12)


# The same where the network predicts v or the clean sample: everything acts on the raw output, whose coefficients the table has.


def _raw_slope(prediction_type: PredictionType, a: float) -> float:
    """`c` of the exact raw output `c x`, with `E[x0 | x]` and `E[eps | x]` of the Gaussian."""
    x0, eps = math.sqrt(a) * S**2 / (a * S**2 + 1 - a), math.sqrt(1 - a) / (a * S**2 + 1 - a)
    return {"epsilon": eps, "v_prediction": math.sqrt(a) * eps - math.sqrt(1 - a) * x0, "sample": x0}[prediction_type]


@pytest.mark.parametrize("mode", ["none", "signed"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_variance_is_exact_whatever_the_network_predicts(prediction_type: PredictionType, mode: Mode) -> None:
    table = compile_sampler("ddim", 20, 1.0, NoiseSchedule(prediction_type=prediction_type, clip_sample=False))
    variance = reference = uncorrected = 1.0
    absorbed = []
    for i in range(table.steps):
        row = table.step(i)
        c = _raw_slope(prediction_type, row.alpha_bar)
        fit = fit_step(_exact_moments(c, variance), row, CorrectionChoice(mode))
        gain, A, B = fit.affine.gain[0], row.x_coeff, row.out_coeff
        variance = (A + B * gain * (1 + K) * c) ** 2 * variance + (B * gain) ** 2 * S2 + fit.sigma_corrected**2
        uncorrected = (A + B * (1 + K) * c) ** 2 * uncorrected + B**2 * S2 + row.sigma**2
        reference = (A + B * c) ** 2 * reference + row.sigma**2
        absorbed.append(0 < fit.sigma_corrected < row.sigma)
        if not all(absorbed):
            break
        assert variance == pytest.approx(reference, rel=1e-12)
    assert len(absorbed) > (15 if prediction_type == "epsilon" else 2)
    assert abs(uncorrected / reference - 1) > 0.02
