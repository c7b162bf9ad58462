"""The correction of every mode against its row of the table, and residuals against the corrected values themselves."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from calib.correction.correction_fit import Mode, Part, fit_correction, residual_mean, residual_variance
from calib.correction.moments import PLAIN, Moments, observe
from engines.arrays import Float64

SAMPLES, PIXELS = 64, 25
K = np.array([-0.2, 0.15, 0.05])
MU = np.array([0.3, -0.2, 0.1])


def _column(per_channel: Float64) -> Float64:
    return per_channel.reshape(1, -1, 1)


def _values(k: Float64 = K, s2: float = 0.0, seed: int = 0) -> Float64:
    """`x, e, d` [3, samples, C, pixels] with `d = k e + mu + sqrt(s2) n`."""
    x, z, n = np.random.default_rng(seed).standard_normal((3, SAMPLES, 3, PIXELS))
    e = 0.5 + z * _column(np.array([1.0, 0.5, 2.0]))
    return np.stack([x, e, _column(k) * e + _column(MU) + np.sqrt(s2) * n])


def _moments(values: Float64) -> Moments:
    return Moments.of(PLAIN, values, np.arange(SAMPLES) % 4)


def test_none_leaves_the_output_alone() -> None:
    affine = fit_correction(_moments(_values()), "none")
    assert (affine.gain.tolist(), affine.offset.tolist()) == ([1.0] * 3, [0.0] * 3)


@pytest.mark.parametrize("mode", ["signed", "bounded", "joint", "mmse"])
def test_a_purely_affine_error_is_undone(mode: Mode) -> None:
    affine = fit_correction(_moments(_values(s2=0.0)), mode)
    np.testing.assert_allclose(affine.gain, 1 / (1 + K), rtol=1e-9)
    np.testing.assert_allclose(affine.offset, -MU / (1 + K), rtol=1e-9)


def test_the_paper_has_one_gain_for_all_channels() -> None:
    moments = _moments(_values(k=np.full(3, 0.15), s2=0.01))
    k = moments.covariance("d", "e").sum() / moments.variance("e").sum()
    affine = fit_correction(moments, "ptqd")
    np.testing.assert_allclose(affine.gain, 1 / (1 + k), rtol=1e-12)
    np.testing.assert_allclose(affine.offset, -(moments.mean_of("d") - k * moments.mean_of("e")) / (1 + k), rtol=1e-12)


def test_the_paper_drops_a_negative_slope_and_keeps_the_bias() -> None:
    moments = _moments(_values(k=np.full(3, -0.15), s2=0.01))
    affine = fit_correction(moments, "ptqd")
    assert affine.gain.tolist() == [1.0] * 3
    np.testing.assert_allclose(affine.offset, -moments.mean_of("d"), rtol=1e-12)


def test_signed_inverts_slopes_of_either_sign_by_channel() -> None:
    moments = _moments(_values(s2=0.01))
    affine = fit_correction(moments, "signed")
    np.testing.assert_allclose(affine.gain, 1 / (1 + K), rtol=0.05)
    k = 1 / affine.gain - 1
    np.testing.assert_allclose(affine.offset, -(moments.mean_of("d") - k * moments.mean_of("e")) * affine.gain, rtol=1e-10)


def test_signed_removes_the_bias_where_it_refuses_the_gain() -> None:
    values = _values(k=np.zeros(3), s2=0.0)
    values[2] += 0.1 * np.where(np.arange(PIXELS) % 2, 1, -1)
    moments = _moments(values)
    affine = fit_correction(moments, "signed")
    assert affine.gain.tolist() == [1.0] * 3
    np.testing.assert_allclose(affine.offset, -moments.mean_of("d"), rtol=1e-12)


def test_mmse_is_the_regression_of_e_on_q() -> None:
    values = _values(s2=0.3)
    affine = fit_correction(_moments(values), "mmse")
    _, e, d = values
    for channel in range(3):
        gain, offset = np.polyfit((e + d)[:, channel].ravel(), e[:, channel].ravel(), 1)
        assert affine.gain[channel] == pytest.approx(gain, rel=1e-10)
        assert affine.offset[channel] == pytest.approx(offset, rel=1e-8)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_residual_is_that_of_whatever_was_applied(mode: Mode) -> None:
    values = _values(s2=0.09)
    moments = _moments(values)
    affine = fit_correction(moments, mode)
    x, e, d = values
    residual = _column(affine.gain) * (e + d) + _column(affine.offset) + _column(affine.state_gain) * x - e
    assert residual_variance(moments, affine) == pytest.approx(residual.var(axis=(0, 2)).mean(), rel=1e-10)
    np.testing.assert_allclose(residual_mean(moments, affine), residual.mean(axis=(0, 2)), rtol=1e-9, atol=1e-12)
    if mode != "none":
        np.testing.assert_allclose(residual_mean(moments, affine), 0, atol=1e-12)


def test_each_mode_is_the_best_at_its_own_aim() -> None:
    moments = _moments(_values(s2=0.04))
    residual = {mode: residual_variance(moments, fit_correction(moments, mode)) for mode in get_args(Mode)}
    assert residual["mmse"] < residual["signed"] < residual["none"]


PLANTED = np.array([-0.1, 0.15, 0.05])
PLANTED_GAIN = {"none": np.ones(3)} | dict.fromkeys(("signed", "bounded", "joint", "mmse"), 1 / (1 + PLANTED))


@pytest.mark.parametrize("parts", [(), ("gain",), ("offset",), ("gain", "offset")])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_part_of_every_mode_recovers_what_was_planted(mode: Mode, parts: tuple[Part, ...]) -> None:
    values = _values(k=PLANTED)
    _, e, _ = values
    deviation = e - e.mean(axis=(0, 2), keepdims=True)
    pooled = np.sum(_column(PLANTED) * deviation**2) / np.sum(deviation**2)
    assert pooled > 0.005, "the paper's k+ is a correction too"
    gain = PLANTED_GAIN[mode] if mode in PLANTED_GAIN else np.full(3, 1 / (1 + pooled))
    gain = gain if "gain" in parts else np.ones(3)
    # What gain leaves of `e' - e = (gain (1 + k) - 1) e + gain mu` on average.
    left = (gain * (1 + PLANTED) - 1) * e.mean(axis=(0, 2)) + gain * MU
    affine = fit_correction(_moments(values), mode, parts)
    np.testing.assert_allclose(affine.gain, gain, rtol=1e-9)
    np.testing.assert_allclose(affine.offset, -left if "offset" in parts and mode != "none" else 0, rtol=1e-9)


@pytest.mark.parametrize("samples", [16, 64, 256])
def test_the_offset_needs_no_gate(samples: int) -> None:
    """Where there is no bias, the mean over n samples adds the n-th part of what the mean of each sample adds to the error anyway."""
    added = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        e, d = rng.standard_normal((2, samples, 1, PIXELS))
        d = 0.1 * d + 0.1 * rng.standard_normal((samples, 1, 1))  # pixels of one sample are not independent
        affine = fit_correction(Moments.of(PLAIN, np.stack([e, e, d]), np.arange(samples) % 4), "signed", {"offset"})
        added.append(affine.offset[0] ** 2 / np.mean(d**2))
    assert np.mean(added) < 1 / samples


@pytest.mark.parametrize("mode", get_args(Mode))
def test_nothing_quantized_needs_no_correction(mode: Mode) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 2, 5)).astype(np.float32)
    e = rng.standard_normal((1, 8, 2, 5)).astype(np.float32)
    e[:, :, 1] = 0.5
    moments = observe(x, e, e, np.arange(8) % 4)
    affine = fit_correction(moments, mode)
    assert (affine.gain.tolist(), affine.offset.tolist()) == ([1.0, 1.0], [0.0, 0.0])
    assert residual_variance(moments, affine) == 0


@pytest.mark.parametrize("mode", get_args(Mode))
def test_one_sample_of_one_channel_is_enough(mode: Mode) -> None:
    values = _values(s2=0.01)[:, :1, :1]
    affine = fit_correction(Moments.of(PLAIN, values, np.zeros(1, np.int64)), mode)
    assert affine.gain.shape == affine.offset.shape == affine.state_gain.shape == (1,)
    assert np.isfinite(affine.gain).all()
    assert np.isfinite(affine.offset).all()
