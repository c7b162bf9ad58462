"""The bounded gain against its closed form on Gaussian data, and in the case in which `joint` amplifies noise 20 times."""

from __future__ import annotations

import numpy as np
import pytest

from calib.correction.bounded_gain import bounded_gains
from calib.correction.correction_fit import Affine, Mode, fit_correction, residual_variance
from calib.correction.joint_gain import joint_gains
from calib.correction.moments import PLAIN, Moments
from calib.correction.signed_gain import signed_gain
from engines.arrays import Float64

SAMPLES, PIXELS = 256, 64
STATE, NOISE = 0.999, 0.04
"""`e = STATE x + NOISE n`: an early step, where the output is nearly the state."""


def moments(lost: float, residual: float, seed: int = 0) -> Moments:
    """Moments of a quantizer that loses a share of `n` and adds `residual r`, with `x`, `n` and `r` standard normal and uncorrelated."""
    x, n, r = np.random.default_rng(seed).standard_normal((3, SAMPLES, 1, PIXELS))
    return Moments.of(PLAIN, np.stack([x, STATE * x + NOISE * n, residual * r - lost * NOISE * n]), np.arange(SAMPLES) % 4)


def end_error(lost: float, residual: float, gain: Float64, state_gain: Float64, steps_left: int) -> Float64:
    """Variance at the end: what is left of `x` and `n` adds up over `steps_left` steps, the amplified residual averages out."""
    of_x = state_gain + (gain - 1) * STATE
    of_n = (gain - 1) * NOISE - gain * lost * NOISE
    return steps_left * (of_x**2 + of_n**2) + (gain * residual) ** 2


@pytest.mark.parametrize("lost", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("steps_left", [1, 5, 20])
def test_no_point_between_signed_and_joint_ends_nearer(lost: float, steps_left: int) -> None:
    seen = moments(lost, residual=0.02)
    signed, (joint, joint_state) = signed_gain(seen), joint_gains(seen)
    t = np.linspace(0, 1, 2001)
    best = end_error(lost, 0.02, signed + t * (joint - signed), t * joint_state, steps_left).min()
    bounded = end_error(lost, 0.02, *bounded_gains(seen, steps_left), steps_left)
    assert float(bounded[0]) == pytest.approx(best, rel=0.02)  # the sampling error of the moments
    assert float(bounded[0]) < 0.98 * end_error(lost, 0.02, joint, joint_state, steps_left)[0] or lost == 0.3


def test_the_fewer_steps_are_left_the_less_noise_is_amplified() -> None:
    gains = [float(bounded_gains(moments(0.95, 0.02), steps_left)[0][0]) for steps_left in (1, 5, 20, 100, 10**6)]
    assert gains == sorted(gains)
    assert gains[0] < 2
    assert gains[-1] == pytest.approx(1 / 0.05, rel=0.1)


def test_without_noise_it_is_joint() -> None:
    seen = moments(0.5, residual=0.0)
    assert np.allclose(bounded_gains(seen, 1), joint_gains(seen))


def test_the_last_step_is_not_farther_than_uncorrected() -> None:
    seen = moments(0.95, 0.02)

    def left(mode: Mode) -> float:
        return residual_variance(seen, fit_correction(seen, mode))

    assert left("bounded") <= left("signed") <= residual_variance(seen, Affine.identity(1))
    assert left("joint") > 10 * left("none") > 10 * left("bounded") * 0.9


def test_channels_that_the_state_does_not_help_get_the_gain_of_signed() -> None:
    e, r, x = np.random.default_rng(1).standard_normal((3, SAMPLES, 1, PIXELS))
    seen = Moments.of(PLAIN, np.stack([x, e, -0.2 * e + 0.1 * r]), np.arange(SAMPLES) % 4)
    gain, state_gain = bounded_gains(seen, 20)
    assert gain == pytest.approx(signed_gain(seen))
    assert state_gain.tolist() == [0.0]
