"""The joint split of the noise on output and state: planted slopes are found, chance ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from calib.correction.correction_fit import fit_correction, residual_variance
from calib.correction.joint_gain import joint_gains
from calib.correction.moments import PLAIN, Moments
from calib.correction.signed_gain import signed_gain
from engines.arrays import Float64

SAMPLES, PIXELS = 64, 49
K = np.array([-0.2, 0.1])
M = np.array([0.05, -0.1])
MU = np.array([0.3, -0.2])


def _column(per_channel: Float64) -> Float64:
    return per_channel.reshape(1, -1, 1)


def _values(k: Float64 = K, m: Float64 = M, s2: float = 0.0, seed: int = 0) -> Float64:
    """`x, e, d` [3, samples, C, pixels]: a state of image and noise, an output that is most of the noise, and planted slopes."""
    image, noise, n = np.random.default_rng(seed).standard_normal((3, SAMPLES, 2, PIXELS))
    x, e = 0.2 + 0.6 * image + 0.8 * noise, 0.9 * noise - 0.2 * image
    return np.stack([x, e, _column(k) * e + _column(m) * x + _column(MU) + np.sqrt(s2) * n])


def _moments(values: Float64) -> Moments:
    return Moments.of(PLAIN, values, np.arange(SAMPLES) % 4)


def test_planted_slopes_are_undone() -> None:
    x, e, d = _values()
    affine = fit_correction(_moments(_values()), "joint")
    np.testing.assert_allclose(affine.gain, 1 / (1 + K), rtol=1e-9)
    np.testing.assert_allclose(affine.state_gain, -M / (1 + K), rtol=1e-9)
    np.testing.assert_allclose(_column(affine.gain) * (e + d) + _column(affine.offset) + _column(affine.state_gain) * x, e, atol=1e-12)


def test_noise_beside_the_slopes_does_not_shrink_what_is_corrected() -> None:
    """Unlike after a regression on `q` and `x`, what is left follows neither output nor state."""
    values = _values(s2=0.05)
    x, e, d = values
    affine = fit_correction(_moments(values), "joint")
    error = _column(affine.gain) * (e + d) + _column(affine.offset) + _column(affine.state_gain) * x - e
    for channel in range(2):
        columns = np.stack([e[:, channel].ravel(), x[:, channel].ravel(), np.ones(SAMPLES * PIXELS)], axis=1)
        slopes = np.linalg.lstsq(columns, error[:, channel].ravel(), rcond=None)[0]
        np.testing.assert_allclose(slopes, 0, atol=1e-9)


def test_more_is_undone_than_by_the_output_alone() -> None:
    moments = _moments(_values(s2=0.001))
    left = {mode: residual_variance(moments, fit_correction(moments, mode)) for mode in ("signed", "joint")}
    assert left["joint"] < 0.3 * left["signed"]


def test_only_channels_that_follow_the_state_get_a_gain_of_it() -> None:
    moments = _moments(_values(k=np.array([-0.2, -0.2]), m=np.array([0.1, 0.0]), s2=0.05))
    gain, state_gain = joint_gains(moments)
    assert state_gain[0] == pytest.approx(-0.1 / 0.8, rel=0.1)
    assert state_gain[1] == 0
    assert gain[1] == signed_gain(moments)[1]


def test_noise_that_follows_nothing_is_seldom_taken_for_a_slope() -> None:
    found = [joint_gains(_moments(_values(k=np.zeros(2), m=np.zeros(2), s2=0.04, seed=seed)))[1] for seed in range(60)]
    assert np.mean(np.array(found) != 0) < 0.08


def test_states_that_are_all_noise_are_told_apart_from_nothing() -> None:
    """At the noisiest step the output is the state: one slope is left to find, and it is shared between the two."""
    values = _values(m=np.zeros(2))
    values[0] = values[1]
    affine = fit_correction(_moments(values), "joint")
    e, d = values[1:]
    corrected = _column(affine.gain) * (e + d) + _column(affine.offset) + _column(affine.state_gain) * values[0]
    np.testing.assert_allclose(corrected, e, atol=1e-9)


def test_one_fold_is_never_believed() -> None:
    moments = Moments.of(PLAIN, _values(), np.zeros(SAMPLES, np.int64))
    gain, state_gain = joint_gains(moments)
    assert state_gain.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(gain, signed_gain(moments))


@pytest.mark.parametrize("scale", [157.0, 20_000.0])
def test_the_scale_of_the_state_does_not_matter(scale: float) -> None:
    """Euler's state has a variance of up to thousands, and is next to nothing but noise there."""
    n = np.random.default_rng(4).standard_normal((2, SAMPLES, 2, PIXELS))
    x = n[0] + 1e-3 * n[1]
    values = np.stack([x, n[0], _column(K) * n[0] + _column(M) * x])
    scaled = values * np.array([scale, 1, 1]).reshape(3, 1, 1, 1)
    (gain, state_gain), (same_gain, scaled_gain) = joint_gains(_moments(values)), joint_gains(_moments(scaled))
    np.testing.assert_allclose(same_gain, gain, rtol=1e-6)
    np.testing.assert_allclose(scale * scaled_gain, state_gain, rtol=1e-6)
    assert state_gain.all()
