"""The schedule of a real build, computed again from the stored moments: plain numpy, written from `docs/method.md`.

The digits have one channel, so that every figure is a number, and the slope of a channel is the pooled one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from calib.correction.correction_fit import Mode
from calib.correction.moments import Moments
from calib.correction.step_fit import CorrectionChoice, fit_step
from engines.arrays import Float64
from engines.samplers.table import TableStep

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

GUIDANCE = 1.5
STEPS = 20
QUANTIZED = ("w2a8", "w4a8", "w8a8")
"""Going up in bit operations."""

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def schedule(digits: Digits) -> Fields:
    return digits.json("schedules/default.json")


@pytest.fixture(scope="module")
def statistics(digits: Digits) -> dict[str, list[Fields]]:
    """The steps' records, by precision."""
    contents = {precision: digits.statistics(precision) for precision in QUANTIZED}
    assert {content["guidance"] for content in contents.values()} == {GUIDANCE}
    return {precision: content["steps"] for precision, content in contents.items()}


def close(value: float, scale: float = 0.0) -> Any:
    """Within 1e-9 of the value, or of the terms that it is the difference of."""
    return pytest.approx(value, rel=1e-9, abs=1e-9 * abs(scale))


# The test's own arithmetic


@dataclass(frozen=True)
class Sums:
    """Means and covariances of `x, e, d` after guidance, over some of the folds."""

    n: float
    mean: Float64
    covariance: Float64

    @classmethod
    def of(cls, moments: Fields, folds: list[int]) -> Sums:
        assert moments["variables"] == ["x", "e_cond", "e_uncond", "d_cond", "d_uncond"]
        w, u = GUIDANCE, 1 - GUIDANCE
        M = np.array([[1, 0, 0, 0, 0], [0, w, u, 0, 0], [0, 0, 0, w, u]])
        n = np.array(moments["count"], dtype=np.float64)[folds]
        means, scatters = (np.array(moments[name])[folds, 0] for name in ("mean", "scatter"))
        total = n.sum()
        mean = (n[:, None] * means).sum(axis=0) / total
        between = sum(count * np.outer(m - mean, m - mean) for count, m in zip(n, means, strict=True))
        return cls(total, M @ mean, M @ (scatters.sum(axis=0) + between) @ M.T / total)

    def weighted(self, one: list[float], other: list[float]) -> float:
        """Covariance of two combinations of `x, e, d`."""
        return float(np.array(one) @ self.covariance @ np.array(other))

    @property
    def k(self) -> float:
        return float(self.covariance[1, 2] / self.covariance[1, 1])


ALL = [0, 1, 2, 3]


def offset_of(gain: float, moments: Sums) -> float:
    _, e, d = moments.mean
    return float((1 - gain) * e - gain * d)


def held_out_square(moments: Sums, weight_e: float, weight_d: float, constant: float) -> float:
    """Sum of `(weight_e e + weight_d d + constant)^2` over the values of some folds."""
    weights = [0.0, weight_e, weight_d]
    return moments.n * (moments.weighted(weights, weights) + (float(np.dot(weights, moments.mean)) + constant) ** 2)


def signed_gain(moments: Fields) -> float:
    """`1 / (1 + k)` where folds that took no part in the fit profit, else 1."""
    explained, nearer = [], []
    for fold in ALL:
        rest, held = Sums.of(moments, [other for other in ALL if other != fold]), Sums.of(moments, [fold])
        k, (_, e, d) = rest.k, rest.mean
        gain = 1 / (1 + k)
        plain = held_out_square(held, 0, 1, -d)
        explained.append(plain - held_out_square(held, -k, 1, -(d - k * e)))
        nearer.append(plain - held_out_square(held, gain - 1, gain, offset_of(gain, rest)))
    standard_error = math.sqrt(4 / 3 * sum((value - np.mean(explained)) ** 2 for value in explained))
    helps = sum(explained) > 2 * standard_error and sum(nearer) > 0
    return 1 / (1 + Sums.of(moments, ALL).k) if helps else 1.0


def gain_of(mode: Mode, moments: Fields) -> float:
    pooled = Sums.of(moments, ALL)
    match mode:
        case "none":
            return 1.0
        case "ptqd":
            return 1 / (1 + max(pooled.k, 0.0))
        case "signed":
            return signed_gain(moments)
        case "joint" | "bounded":
            raise AssertionError("they have two gains: tests/calib/correction/test_joint_gain.py, test_bounded_gain.py")
        case "mmse":
            return pooled.weighted([0, 1, 0], [0, 1, 1]) / pooled.weighted([0, 1, 1], [0, 1, 1])


@dataclass(frozen=True)
class Expected:
    """A correction, and the variance that is added to the step for all that."""

    gain: float
    offset: float
    residual_variance: float
    added: float


def expected_correction(mode: Mode, moments: Fields, A: float, B: float) -> Expected:
    pooled, gain = Sums.of(moments, ALL), gain_of(mode, moments)
    residual, step = [0.0, gain - 1, gain], [A, B, 0.0]
    v = pooled.weighted(residual, residual)
    added = B**2 * v if mode == "ptqd" else 2 * B * pooled.weighted(residual, step) + B**2 * v
    return Expected(gain, 0.0 if mode == "none" else offset_of(gain, pooled), v, added)


def sigma_of(sigma: float, added: float) -> float:
    """The noise gives up what was added, and never takes what is missing."""
    return math.sqrt(min(max(sigma**2 - added, 0.0), sigma**2))


def alphas() -> Float64:
    """1000 linear betas from 0.0001 to 0.02."""
    betas = 0.0001 + (0.02 - 0.0001) * np.arange(1000) / 999
    return np.cumprod(1 - betas, dtype=np.float64)


# The stored schedule


def test_timesteps_and_coefficients_are_those_of_ddim(schedule: Fields) -> None:
    assert len(schedule["steps"]) == STEPS
    assert schedule["init_sigma"] == 1
    for i, step in enumerate(schedule["steps"]):
        t = 950 - 50 * i
        a, a_prev = alphas()[t], alphas()[t - 50] if t >= 50 else 1.0
        sigma = math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        direction = math.sqrt(max(1 - a_prev - sigma**2, 0.0))
        assert (step["step"], step["timestep"], step["input_scale"], step["clip"], step["history_coeffs"]) == (i, t, 1, None, [])
        assert step["x_coeff"] == close(math.sqrt(a_prev / a))
        assert step["out_coeff"] == close(direction - math.sqrt(a_prev * (1 - a) / a))
        assert step["prediction_coeffs"] == [close(1 / math.sqrt(a)), close(-math.sqrt((1 - a) / a))]
        assert step["sigma"] == close(sigma)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_noise_is_split_as_the_moments_say(statistics: dict[str, list[Fields]], precision: str) -> None:
    assert len(statistics[precision]) == STEPS
    for record in statistics[precision]:
        pooled = Sums.of(record["moments"], ALL)
        _, e, d = pooled.mean
        var_e, var_d, k = pooled.covariance[1, 1], pooled.covariance[2, 2], pooled.k
        s2 = pooled.weighted([0, -k, 1], [0, -k, 1])
        assert record["n"] == sum(record["moments"]["samples"])
        assert record["k"] == close(k)
        assert record["k_channel"] == [close(k)]
        assert record["k_standard_error"] == close(slope_error(record["moments"]))
        assert record["mu"] == [close(d - k * e, scale=d)]
        assert record["s2"] == close(s2)
        assert record["r2"] == close(1 - s2 / var_d, scale=1)
        assert record["snr_db"] == close(10 * math.log10((var_e + e**2) / (var_d + d**2)))


def slope_error(moments: Fields) -> float:
    """Standard error of k from the spread of the folds' scores, whose sum is zero."""
    pooled, scores = Sums.of(moments, ALL), []
    for fold in ALL:
        held = Sums.of(moments, [fold])
        about = held.covariance + np.outer(held.mean - pooled.mean, held.mean - pooled.mean)
        scores.append(held.n * float(about[1, 2] - pooled.k * about[1, 1]))
    return math.sqrt(4 / 3 * sum(score**2 for score in scores)) / (pooled.n * float(pooled.covariance[1, 1]))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_correction_follows_from_the_moments(schedule: Fields, statistics: dict[str, list[Fields]], precision: str) -> None:
    assert schedule["correction"] == {"mode": "signed", "parts": ["gain", "offset"], "variance": "schedule"}
    for step, record in zip(schedule["steps"], statistics[precision], strict=True):
        expected = expected_correction("signed", record["moments"], step["x_coeff"], step["out_coeff"])
        stored = step["corrections"][precision]
        pooled = Sums.of(record["moments"], ALL)
        power = pooled.covariance[1, 1] + pooled.mean[1] ** 2
        assert stored["gain"] == [close(expected.gain)]
        assert stored["offset"] == [close(expected.offset, scale=pooled.mean[2])]
        assert stored["residual_variance"] == record["residual_variance"] == close(expected.residual_variance)
        assert record["corrected_snr_db"] == close(10 * math.log10(power / expected.residual_variance))
        assert stored["sigma_corrected"] == close(sigma_of(step["sigma"], expected.added))
        assert stored["sigma_corrected"] <= step["sigma"]
        assert stored["unabsorbed_variance"] == close(max(expected.added - step["sigma"] ** 2, 0.0), scale=expected.added)


def test_every_case_of_the_correction_occurs(schedule: Fields) -> None:
    """Gains that help and gains that do not; noise given up in part, in whole, and not at all."""
    stored = [(step["sigma"], step["corrections"][precision]) for step in schedule["steps"] for precision in QUANTIZED]
    assert {correction["gain"] == [1.0] for _, correction in stored} == {True, False}
    shares = {correction["sigma_corrected"] / sigma for sigma, correction in stored if sigma > 0}
    assert {0.0, 1.0} < shares
    assert {correction["unabsorbed_variance"] > 0 for _, correction in stored} == {True, False}


def test_full_precision_is_left_alone(schedule: Fields) -> None:
    for step in schedule["steps"]:
        assert step["corrections"]["fp32"] == {
            "gain": [1.0],
            "offset": [0.0],
            "state_gain": [0.0],
            "sigma_corrected": step["sigma"],
            "residual_variance": 0.0,
            "unabsorbed_variance": 0.0,
        }


def test_policy_takes_the_first_precision_that_the_step_can_bear(schedule: Fields, statistics: dict[str, list[Fields]]) -> None:
    assert schedule["policy"] == "snr"
    for i, step in enumerate(schedule["steps"]):
        a = alphas()[round(step["timestep"])]
        bearable = [precision for precision in QUANTIZED if signal_to_noise(step, statistics, precision, i) > a / (1 - a)]
        assert step["precision"] == (bearable or QUANTIZED)[0 if bearable else -1]
    assert {step["precision"] for step in schedule["steps"]} == set(QUANTIZED)


def signal_to_noise(step: Fields, statistics: dict[str, list[Fields]], precision: str, i: int) -> float:
    """`||e|| / ||e' - e||` over all samples and pixels, from the stored correction."""
    pooled, correction = Sums.of(statistics[precision][i]["moments"], ALL), step["corrections"][precision]
    (gain,), (offset,) = correction["gain"], correction["offset"]
    signal = held_out_square(pooled, 1, 0, 0)
    return math.sqrt(signal / held_out_square(pooled, gain - 1, gain, offset))


# Other modes, fitted from the same file


@pytest.mark.parametrize("variance", ["schedule", "none"])
@pytest.mark.parametrize("mode", ["none", "ptqd", "signed", "mmse"])
def test_any_mode_can_be_fitted_again_from_the_stored_moments(
    schedule: Fields, statistics: dict[str, list[Fields]], mode: Mode, variance: Literal["schedule", "none"]
) -> None:
    for precision in QUANTIZED:
        for step, record in zip(schedule["steps"], statistics[precision], strict=True):
            moments, row = Moments.from_json(record["moments"]).guided(GUIDANCE), table_step(step)
            fitted = fit_step(moments, row, CorrectionChoice(mode, variance))
            expected = expected_correction(mode, record["moments"], row.x_coeff, row.out_coeff)
            mean_d = Sums.of(record["moments"], ALL).mean[2]
            absorbed = row.sigma**2 if variance == "schedule" else 0.0
            assert fitted.affine.gain.tolist() == [close(expected.gain)]
            assert fitted.affine.offset.tolist() == [close(expected.offset, scale=mean_d)]
            assert fitted.residual_variance == close(expected.residual_variance)
            assert fitted.sigma_corrected == (close(sigma_of(row.sigma, expected.added)) if variance == "schedule" else row.sigma)
            assert fitted.unabsorbed_variance == close(max(expected.added - absorbed, 0.0), scale=expected.added)


def table_step(step: Fields) -> TableStep:
    """The stored coefficients as the sampler's row; a fit reads no alpha."""
    return TableStep(
        timestep=step["timestep"],
        alpha_bar=math.nan,
        x_coeff=step["x_coeff"],
        out_coeff=step["out_coeff"],
        prediction_coeffs=tuple(step["prediction_coeffs"]),
        epsilon_coeffs=(0.0, 1.0),
        history_coeffs=tuple(step["history_coeffs"]),
        sigma=step["sigma"],
        input_scale=step["input_scale"],
        clip=step["clip"],
    )
