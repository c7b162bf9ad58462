"""What the walk is for: the corrected chain keeps the variance and the mean of the full-precision one, and what is recorded says why."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calib.correction.correction_fit import Mode
from calib.correction.step_fit import CorrectionChoice
from calib.walk.walk import StepResult
from engines.arrays import Float32, Float64
from tests.calib.walk.gaussian_walk import (
    MEAN,
    S2,
    SHAPE,
    STEPS,
    Exact,
    K,
    always,
    clipped,
    column,
    ddim,
    slope,
    take,
    walk_plan,
)

POPULATION = 2048


def _variances(mode: Mode, folder: Path, variance: bool) -> tuple[list[StepResult], Float64, Float64]:
    """Results, and the state's variance within channels [STEPS] and mean [STEPS, C] after each step."""
    plan = walk_plan(POPULATION, mode=mode, policy=always("high"))
    plan = replace(plan, correction=CorrectionChoice(mode, "schedule" if variance else "none"), batch_size=512)
    states: list[Float64] = []
    results, final = take(plan, folder, lambda _, x: states.append(np.array(x, np.float64)))
    after = [*states[1:], final.astype(np.float64)]
    axes = (0, 2, 3)
    return results, np.array([x.var(axis=axes).mean() for x in after]), np.array([x.mean(axis=axes) for x in after])


def _exact_chain(unabsorbed: Float64) -> tuple[Float64, Float64]:
    """The full-precision chain's variance [STEPS] and mean [STEPS, C] in closed form, with variance added at each step."""
    table, variance, mean = ddim(), 1.0, np.zeros(3)
    variances, means = [], []
    for i, a in enumerate(table.alpha_bar):
        A, B, c = table.x_coeff[i], table.out_coeff[i], slope(a)
        variance = (A + B * c) ** 2 * variance + table.sigma[i] ** 2 + unabsorbed[i]
        mean = A * mean + B * c * (mean - math.sqrt(a) * MEAN)
        variances.append(variance)
        means.append(mean)
    return np.array(variances), np.array(means)


VALUES = POPULATION * math.prod(SHAPE)
BOUND = 5 * math.sqrt(2 / VALUES)


@pytest.mark.parametrize("mode", ["signed", "joint", "mmse"])
def test_the_corrected_chain_keeps_the_variance_and_the_mean_of_full_precision(mode: Mode, tmp_path: Path) -> None:
    results, variances, means = _variances(mode, tmp_path, variance=True)
    unabsorbed = np.array([result.corrections["high"].unabsorbed_variance for result in results])
    exact, exact_means = _exact_chain(np.zeros(STEPS))
    np.testing.assert_allclose(variances, exact, rtol=BOUND)
    np.testing.assert_allclose(variances, _exact_chain(unabsorbed)[0], rtol=BOUND)
    assert np.all(unabsorbed[:17] == 0)
    np.testing.assert_allclose(means, exact_means, atol=5 * math.sqrt(exact.max() / (VALUES / 3)))


def test_the_uncorrected_chain_keeps_neither(tmp_path: Path) -> None:
    _, variances, means = _variances("none", tmp_path, variance=False)
    exact, exact_means = _exact_chain(np.zeros(STEPS))
    assert np.all(np.abs(variances / exact - 1)[2:] > 2 * BOUND)
    assert np.all(np.abs(means - exact_means)[2:, 0] > 10 * math.sqrt(exact.max() / (VALUES / 3)))


def test_the_planted_noise_is_found_at_every_step(tmp_path: Path) -> None:
    plan = replace(walk_plan(512, policy=always("high")), batch_size=256)
    results, _ = take(plan, tmp_path)
    per_channel = 512 * 16
    for result in results:
        e = result.moments["high"].variance("e")
        k_error = np.sqrt(S2 / (per_channel * e))
        assert np.all(np.abs(result.noise["high"].k_channel - K) < 5 * k_error)
        affine = result.corrections["high"].affine
        believed = affine.gain != 1
        assert np.all(np.abs(affine.gain * (1 + K) - 1)[believed] < 7 * k_error[believed])
        assert result.corrections["high"].residual_variance == pytest.approx(np.mean(S2 * affine.gain**2), rel=0.25)
    gains = np.array([result.corrections["high"].affine.gain for result in results])
    assert np.mean(gains != 1) > 0.6, "the early steps have a strong correlation"


# What is recorded can be computed again.


@pytest.mark.parametrize("name", ["low", "high"])
def test_sigma_follows_from_the_stored_moments(name: str, tmp_path: Path) -> None:
    table = ddim()
    results, _ = take(walk_plan(), tmp_path)
    differs = 0
    for result in results:
        stored = result.moments[name].to_json()
        count, mean, scatter = np.array(stored["count"]), np.array(stored["mean"]), np.array(stored["scatter"])
        pooled = (count[:, None, None] * mean).sum(axis=0) / count.sum()
        delta = mean - pooled
        covariance = (scatter + np.einsum("f,fci,fcj->fcij", count, delta, delta)).sum(axis=0) / count.sum()
        A, B, sigma = table.x_coeff[result.step], table.out_coeff[result.step], table.sigma[result.step]
        correction = result.corrections[name]
        reference = corrected = 0.0
        for channel, gain in enumerate(correction.affine.gain):
            plain, changed = np.array([A, B, 0]), np.array([A, B * gain, B * gain])
            reference += plain @ covariance[channel] @ plain / 3
            corrected += changed @ covariance[channel] @ changed / 3
        expected = math.sqrt(max(sigma**2 + reference - corrected, 0)) if sigma else 0.0
        assert correction.sigma_corrected == pytest.approx(expected, rel=1e-8, abs=1e-12)
        assert correction.unabsorbed_variance == pytest.approx(max(corrected - reference - sigma**2, 0), rel=1e-8, abs=1e-12)
        differs += abs(correction.sigma_corrected - sigma) > 1e-4
    assert differs > STEPS / 2


def test_a_deterministic_chain_stays_deterministic(tmp_path: Path) -> None:
    results, _ = take(walk_plan(table=ddim(eta=0.0)), tmp_path)
    corrections = [correction for result in results for correction in result.corrections.values()]
    assert all(correction.sigma_corrected == 0 for correction in corrections)
    assert any(correction.unabsorbed_variance > 0 for correction in corrections)


@pytest.mark.parametrize(("clip", "history"), [(0.6, 1), (0.6, 2), (100.0, 2)])
def test_with_clipping_or_history_the_variance_of_the_whole_step_is_measured(clip: float, history: int, tmp_path: Path) -> None:
    table, exact = clipped(ddim(), clip, history), Exact()
    plan = walk_plan(table=table, policy=always("high"))
    earlier: tuple[Float64, Float64] | None = None

    def check(result: StepResult, states: Float32) -> None:
        nonlocal earlier
        step, x = table.step(result.step), np.array(states)
        (A, B), (P, Q) = (step.x_coeff, step.out_coeff), step.prediction_coeffs
        affine = result.corrections["high"].affine
        e = exact(x, result.timestep, plan.rows)[0].astype(np.float64)
        q = plan.quantized["high"](x, result.timestep, plan.rows)[0].astype(np.float64)
        outs = (e, column(affine.gain) * q + column(affine.offset))
        of_exact, of_corrected = (np.clip(P * x + Q * out, -clip, clip) for out in outs)
        means = [A * x + B * out + step.history_coeffs[0] * m for out, m in zip(outs, (of_exact, of_corrected), strict=True)]
        if history == 2 and earlier:
            means = [mean + step.history_coeffs[1] * m for mean, m in zip(means, earlier, strict=True)]
        variances = [mean.var(axis=(0, 2, 3)).mean() for mean in means]
        earlier = of_exact, of_corrected
        expected = min(math.sqrt(max(step.sigma**2 + variances[0] - variances[1], 0)), step.sigma)
        assert result.corrections["high"].sigma_corrected == pytest.approx(expected, rel=1e-4, abs=1e-4)

    results, _ = take(plan, tmp_path, check)
    assert len(results) == STEPS
    changed = [abs(result.corrections["high"].sigma_corrected - table.sigma[result.step]) > 1e-3 for result in results]
    assert sum(changed) >= 2, "the noise gives something up at some steps"
