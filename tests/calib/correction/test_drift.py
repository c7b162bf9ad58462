"""Noise taken out of a step, against variances of the steps themselves and against Q-Drift's own formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from calib.correction.correction_fit import Affine
from calib.correction.drift import check_drift, levels, matched_share, q_drift_share
from calib.correction.moments import PLAIN, Moments
from calib.correction.step_change import STEP_CHANGE, step_change
from calib.correction.step_fit import CorrectionChoice, StepCorrection, fit_step
from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers import SAMPLERS, NoiseSchedule, compile_sampler
from engines.samplers.levels.noise_schedule import PredictionType
from engines.samplers.table import TableStep

STEP = TableStep(
    timestep=500.0, alpha_bar=0.4, x_coeff=1.1, out_coeff=-0.4, prediction_coeffs=(1.0, 0.0), epsilon_coeffs=(0.0, 1.0),
    history_coeffs=(), sigma=0.0, input_scale=1.0, clip=None,
)  # fmt: skip
FOLDS = np.arange(64) % 4
UNCLIPPED = NoiseSchedule(clip_sample=False)


def _values(noise: float = 0.5) -> Float64:
    """`x, e, d` [3, 64, 2, 16]: `e` follows `x`, and `d` follows `e` a little."""
    x, z, n = np.random.default_rng(0).standard_normal((3, 64, 2, 16))
    e = 0.6 * x + 0.3 * z + 0.2
    return np.stack([x, e, 0.05 * e + 0.1 + noise * n])


def _fit(step: TableStep, choice: CorrectionChoice, values: Float64) -> StepCorrection:
    return fit_step(Moments.of(PLAIN, values, FOLDS), step, choice)


def _mean(step: TableStep, affine: Affine, values: Float64) -> Float64:
    """`A x + B e'`."""
    x, e, d = values
    gain, offset, state_gain = (part.reshape(1, -1, 1) for part in (affine.gain, affine.offset, affine.state_gain))
    mean: Float64 = step.x_coeff * x + step.out_coeff * (gain * (e + d) + offset + state_gain * x)
    return mean


def _variance(values: Float64) -> float:
    return float(values.var(axis=(0, 2)).mean())


@pytest.mark.parametrize("mode", ["none", "ptqd", "joint"])
@pytest.mark.parametrize("epsilon_coeffs", [(0.0, 1.0), (0.7, 0.6), (1.2, -0.8)], ids=["epsilon", "v or flow", "sample"])
def test_a_step_without_fresh_noise_gets_the_variance_of_full_precision(mode: str, epsilon_coeffs: tuple[float, float]) -> None:
    step, values = replace(STEP, epsilon_coeffs=epsilon_coeffs), _values()
    exact = step.x_coeff * values[0] + step.out_coeff * values[1]
    kept, drifted = (_fit(step, CorrectionChoice(mode, name), values) for name in ("schedule", "drift"))  # type: ignore[arg-type]
    assert _variance(_mean(step, kept.affine, values)) > 1.02 * _variance(exact)
    assert _variance(_mean(step, drifted.affine, values)) == pytest.approx(_variance(exact), rel=1e-12)
    assert kept.unabsorbed_variance > 0.02 * _variance(exact)
    assert drifted.unabsorbed_variance == pytest.approx(0, abs=1e-15)
    before, after = (_mean(step, fit.affine, values).mean(axis=(0, 2)) for fit in (kept, drifted))
    np.testing.assert_allclose(after, before, atol=1e-12, err_msg="the mean stays")


def test_what_is_taken_out_is_predicted_noise() -> None:
    step, values = replace(STEP, epsilon_coeffs=(0.7, 0.6)), _values()
    kept, drifted = (_fit(step, CorrectionChoice("joint", name), values) for name in ("schedule", "drift"))
    x, e, d = values
    gain, offset, state_gain = (part.reshape(1, -1, 1) for part in (kept.affine.gain, kept.affine.offset, kept.affine.state_gain))
    noise = 0.7 * x + 0.6 * (gain * (e + d) + offset + state_gain * x)
    taken = _mean(step, kept.affine, values) - _mean(step, drifted.affine, values)
    centred = noise - noise.mean(axis=(0, 2), keepdims=True)
    delta = (taken * centred).sum() / (centred**2).sum()
    assert 0 < delta < 0.5
    np.testing.assert_allclose(taken, delta * centred, atol=1e-12)


def test_fresh_noise_gives_up_what_it_can_before_the_step_does() -> None:
    values = _values()
    without, little, enough = (_fit(replace(STEP, sigma=sigma), CorrectionChoice("none", "drift"), values) for sigma in (0.0, 0.1, 0.5))
    exact = _variance(1.1 * values[0] - 0.4 * values[1])
    assert little.sigma_corrected == 0
    assert _variance(_mean(STEP, little.affine, values)) == pytest.approx(exact + 0.1**2, rel=1e-12)
    assert abs(1 - little.affine.gain[0]) < abs(1 - without.affine.gain[0])
    assert enough.affine.gain.tolist() == [1.0, 1.0]
    assert 0 < enough.sigma_corrected < 0.5


def _change(mean: Float64, change: Float64, noise: Float64) -> Moments:
    return Moments.of(STEP_CHANGE, np.stack([mean, change, noise]).reshape(3, -1, 1, 1), np.arange(len(mean)) % 4)


ONE, OTHER, THIRD = np.array([1.0, 1, -1, -1] * 2), np.array([1.0, -1, 1, -1] * 2), np.repeat([1.0, -1], 4)
"""Three uncorrelated variables of variance 1."""


def test_the_share_is_the_root_nearer_to_0() -> None:
    """y = 2 ONE + c, eps' = ONE: 4 + u - 4 delta + delta^2 = 4 has the roots 2 -+ sqrt(4 - u)."""
    change = _change(2 * ONE, math.sqrt(1.75) * OTHER, ONE)
    assert matched_share(change, STEP, 1.75) == pytest.approx((2 - 1.5) / -0.4, rel=1e-12)
    assert matched_share(change, STEP, 0.0) == 0
    assert matched_share(change, STEP, -0.1) == 0


def test_where_quantization_noise_outweighs_the_predicted_noise_the_step_shrinks() -> None:
    """y = -ONE + c, eps' = ONE: 1 + u + 2 delta + delta^2 = 1 has the roots -1 -+ sqrt(1 - u)."""
    assert matched_share(_change(-ONE, math.sqrt(0.36) * OTHER, ONE), STEP, 0.36) == pytest.approx((-1 + 0.8) / -0.4, rel=1e-12)


def test_where_the_noise_in_the_step_is_too_little_the_least_variance_is_left() -> None:
    """y = ONE + c with Var(c) = 0.8, eps' = ONE + 2 THIRD: 1.8 - 2 delta + 5 delta^2 is least, 1.6, at delta = 1/5."""
    change = _change(ONE, math.sqrt(0.8) * OTHER, ONE + 2 * THIRD)
    assert matched_share(change, STEP, 0.8) == pytest.approx(0.2 / -0.4, rel=1e-12)
    measured = replace(STEP, history_coeffs=(0.0, 0.1))
    fit = fit_step(Moments.of(PLAIN, _values()[:, :, :1], FOLDS), measured, CorrectionChoice("none", "drift"), lambda _: change)
    assert fit.unabsorbed_variance == pytest.approx(0.6, rel=1e-12)
    assert fit.affine.gain[0] == pytest.approx(1.5, rel=1e-12)


def test_a_step_whose_variance_does_not_follow_the_noise_stays_as_it_is() -> None:
    assert matched_share(_change(2 * ONE, OTHER, THIRD), STEP, 0.5) == 0


def _white(step: TableStep, s2: float, S: float = 0.6) -> Moments:
    """Moments of `x, e, d` of Gaussian data with white noise on the raw output of the exact network, without sampling error."""
    (alpha, sigma), _ = levels(step)
    variance = alpha**2 * S**2 + sigma**2
    (P, Q), (R, T) = step.prediction_coeffs, step.epsilon_coeffs
    slope = (alpha * S**2 / variance - P) / Q if Q else (sigma / variance - R) / T
    covariance = np.array([[variance, slope * variance, 0], [slope * variance, slope**2 * variance, 0], [0, 0, s2]])
    count = np.full(4, 1000)
    return Moments(PLAIN, count, count, np.zeros((4, 1, 3)), np.tile(1000 * covariance, (4, 1, 1, 1)))


def test_q_drift_is_the_papers_factor_on_the_increment_of_euler_s_method() -> None:
    """`x + dsigma (1 + c) q` with `c = V |dsigma| / (sigma_s + sigma_t)`, and `V` the variance of `d` that `q` does not predict.

    The paper's equation for Euler's method has `2 sigma_s` for the sum, which is its value for short steps.
    """
    table = compile_sampler("euler", 50, 0.0, UNCLIPPED)
    step = table.step(30)
    moments = _white(step, 0.04)
    fit = fit_step(moments, step, CorrectionChoice("none", "q-drift"))
    sigma_s, sigma_t = (math.sqrt((1 - a) / a) for a in (step.alpha_bar, table.step(31).alpha_bar))
    var_e = float(moments.variance("e")[0])
    c = 0.04 * (1 - 0.04 / (var_e + 0.04)) * (sigma_s - sigma_t) / (sigma_s + sigma_t)
    assert fit.affine.gain[0] == pytest.approx(1 + c, rel=1e-9)
    assert (fit.affine.state_gain[0], fit.sigma_corrected) == (pytest.approx(0, abs=1e-12), 0)


def test_q_drift_is_the_papers_factor_on_the_increment_of_dpm_solver() -> None:
    """`x / alpha` moves by `a` times its increment, `a = 1 + Var(dy) / (bar_sigma_s^2 - bar_sigma_t^2)`."""
    table = compile_sampler("dpm++1", 20, 0.0, UNCLIPPED)
    step, a_t = table.step(8), table.step(9).alpha_bar
    moments, bar = _white(step, 0.04), [math.sqrt((1 - a) / a) for a in (step.alpha_bar, a_t)]
    V = 0.04 * (1 - 0.04 / (float(moments.variance("e")[0]) + 0.04))
    factor = 1 + step.out_coeff**2 * V / a_t / (bar[0] ** 2 - bar[1] ** 2)
    assert fit_step(moments, step, CorrectionChoice("none", "q-drift")).affine.gain[0] == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("name", ["ddim", "euler", "flow-euler"])
def test_q_drift_and_the_matched_variance_agree_in_first_order_of_the_noise_and_of_the_step(name: str) -> None:
    schedule = NoiseSchedule(prediction_type="flow") if name == "flow-euler" else UNCLIPPED
    ratios = []
    for steps in (10, 100, 1000):
        step = compile_sampler(name, steps, 0.0, schedule).step(steps // 2)
        change = step_change(_white(step, 1e-6), Affine.identity(1), step)
        excess = step.out_coeff**2 * 1e-6
        ratios.append(q_drift_share(change, step) / matched_share(change, step, excess))
    away = np.abs(np.array(ratios) - 1)
    assert away[0] > 10 * away[2]
    assert away[2] < 0.01


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim", "dpm++1", "dpm++2m"])
def test_levels_are_those_of_the_states(name: str, prediction_type: PredictionType) -> None:
    table = compile_sampler(name, 20, 0.0, UNCLIPPED.model_copy(update={"prediction_type": prediction_type}))
    start, end = levels(table.step(7))
    for found, a in ((start, table.step(7).alpha_bar), (end, table.step(8).alpha_bar)):
        assert found == pytest.approx((math.sqrt(a), math.sqrt(1 - a)), rel=1e-9)


def test_levels_of_a_flow() -> None:
    table = compile_sampler("flow-euler", 20, 0.0, NoiseSchedule(prediction_type="flow"))
    sigma = table.timestep / 1000
    assert np.array(levels(table.step(7))) == pytest.approx(np.array([[1 - sigma[7], sigma[7]], [1 - sigma[8], sigma[8]]]), rel=1e-9)


def test_steps_with_clipping_are_refused() -> None:
    with pytest.raises(UsageError, match="clipping"):
        check_drift(compile_sampler("ddim", 4, 0.0, NoiseSchedule(clip_sample=True)), "drift")


def test_steps_that_do_not_use_the_output_are_refused() -> None:
    table = compile_sampler("ddim", 4, 0.0, UNCLIPPED)
    with pytest.raises(UsageError, match="step 2"):
        check_drift(replace(table, out_coeff=np.array([1.0, 1, 0, 1])), "drift")


@pytest.mark.parametrize(
    ("name", "needed"), [("plms", "clean sample"), ("deis2", "clean sample"), ("deis3", "clean sample"), ("heun", "another noise level")]
)
def test_q_drift_refuses_a_sampler_without_a_prediction_of_the_clean_sample_or_a_change_of_level(name: str, needed: str) -> None:
    table = compile_sampler(name, 4, 0.0, UNCLIPPED)
    check_drift(table, "drift")
    with pytest.raises(UsageError, match=needed):
        check_drift(table, "q-drift")


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("plms", "deis2", "deis3", "heun")])
def test_other_samplers_are_taken(name: str) -> None:
    schedule = NoiseSchedule(prediction_type="flow") if SAMPLERS[name].predictions == ("flow",) else UNCLIPPED
    check_drift(compile_sampler(name, 4, SAMPLERS[name].eta, schedule), "q-drift")
