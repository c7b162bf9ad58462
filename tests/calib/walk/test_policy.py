"""The choice of precision against norms taken from the values themselves."""

from __future__ import annotations

import numpy as np
import pytest

from calib.correction.correction_fit import Affine, fit_correction
from calib.correction.moments import PLAIN, Moments
from calib.walk.policy import FittedStep, FixedPolicy, SnrPolicy, choose_snr
from engines.arrays import Float64
from engines.samplers.table import TableStep

NOISE = {"w4a4": 0.5, "w4a8": 0.1, "w8a8": 0.01}
EPSILON = (0.0, 1.0)


def _values(noise: float, bias: float = 0.0) -> Float64:
    x, e, n = np.random.default_rng(0).standard_normal((3, 32, 2, 16))
    return np.stack([x, e + 0.3, noise * n + bias])


def _moments(bias: float = 0.0) -> dict[str, Moments]:
    return {name: Moments.of(PLAIN, _values(noise, bias), np.arange(32) % 4) for name, noise in NOISE.items()}


UNCORRECTED = {name: Affine.identity(2) for name in NOISE}


def _alpha_bar(ratio: float) -> float:
    """The cumulative alpha with `a / (1 - a)` equal to this."""
    return ratio / (1 + ratio)


def _ratio(name: str, epsilon_coeffs: tuple[float, float] = EPSILON) -> float:
    R, T = epsilon_coeffs
    x, e, d = _values(NOISE[name])
    return float(np.linalg.norm(R * x + T * e) / np.linalg.norm(T * d))


@pytest.mark.parametrize("epsilon_coeffs", [(0.0, 1.0), (0.6, 0.8), (1.25, -0.75)])
@pytest.mark.parametrize(("name", "next_up"), [("w4a4", "w4a8"), ("w4a8", "w8a8")])
def test_a_precision_is_taken_up_to_the_signal_to_noise_ratio_of_its_epsilon(
    name: str, next_up: str, epsilon_coeffs: tuple[float, float]
) -> None:
    ratio = _ratio(name, epsilon_coeffs)
    for factor, chosen in [(0.999, name), (1.001, next_up)]:
        assert choose_snr(tuple(NOISE), _alpha_bar(factor * ratio), epsilon_coeffs, _moments(), UNCORRECTED) == chosen


@pytest.mark.parametrize("alpha_bar", [0.9999, 1.0])
def test_the_last_is_taken_where_none_is_good_enough(alpha_bar: float) -> None:
    assert choose_snr(tuple(NOISE), alpha_bar, EPSILON, _moments(), UNCORRECTED) == "w8a8"


def test_the_noise_is_that_left_by_the_correction() -> None:
    moments = _moments(bias=1.0)
    corrected = {name: fit_correction(of_xed, "mmse") for name, of_xed in moments.items()}
    alpha_bar = _alpha_bar(1.5)
    assert choose_snr(tuple(NOISE), alpha_bar, EPSILON, moments, UNCORRECTED) == "w8a8", "the bias counts"
    assert choose_snr(tuple(NOISE), alpha_bar, EPSILON, moments, corrected) == "w4a4"


def test_an_exact_precision_is_always_good_enough() -> None:
    moments = _moments() | {"fp32": Moments.of(PLAIN, _values(0.0), np.arange(32) % 4)}
    affines = UNCORRECTED | {"fp32": Affine.identity(2)}
    assert choose_snr(("fp32", "w8a8"), 0.9999, EPSILON, moments, affines) == "fp32"


def _fitted(step: int, alpha_bar: float) -> FittedStep:
    row = TableStep(0.0, alpha_bar, 1.0, 0.0, (1.0, 0.0), EPSILON, (), 0.0, 1.0, None)
    return FittedStep(step, row, _moments(), UNCORRECTED)


def test_policies_decide_a_fitted_step() -> None:
    assert SnrPolicy(tuple(NOISE))(_fitted(0, 0.01)) == "w4a4"
    assert SnrPolicy(tuple(NOISE))(_fitted(0, _alpha_bar(1.01 * _ratio("w4a4")))) == "w4a8"
    fixed = FixedPolicy(("w8a8", "w4a8"))
    assert [fixed(_fitted(step, 0.01)) for step in (0, 1)] == ["w8a8", "w4a8"]
