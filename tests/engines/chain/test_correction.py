"""The affine correction against its formula."""

from __future__ import annotations

import numpy as np
import pytest

from engines.chain.correction import correct

NOTHING = (0.0,) * 3


@pytest.mark.parametrize("rest", [(), (5,), (2, 3), (2, 3, 4)])
def test_each_channel_has_its_own_gain_and_offset(rest: tuple[int, ...]) -> None:
    out = np.random.default_rng(0).normal(size=(2, 3, *rest)).astype(np.float32)
    gain, offset = (1.5, 0.5, -2.0), (0.25, 0.0, -1.0)
    corrected = correct(out, np.ones_like(out), gain, offset, NOTHING)
    assert corrected.shape == out.shape
    for c in range(3):
        np.testing.assert_array_equal(corrected[:, c], np.float32(gain[c]) * out[:, c] + np.float32(offset[c]))


def test_identity_changes_nothing() -> None:
    out = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(correct(out, np.ones_like(out), (1.0,) * 3, (0.0,) * 3, NOTHING), out)


def test_the_state_is_added_by_channel() -> None:
    out, x = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
    state_gain = (0.0, 0.5, -0.25)
    without, corrected = (correct(out, x, (1.5,) * 3, (0.25,) * 3, of_state) for of_state in (NOTHING, state_gain))
    for c in range(3):
        np.testing.assert_array_equal(corrected[:, c], without[:, c] + np.float32(state_gain[c]) * x[:, c])


def test_result_is_float32_whatever_the_coefficients_are() -> None:
    out = np.ones((1, 2, 3), dtype=np.float32)
    corrected = correct(out, out, np.array([1 / 3, 2.0]), np.array([0.0, 1e-3]), np.zeros(2))
    assert corrected.dtype == np.float32
    assert corrected[0, :, 0].tolist() == [np.float32(1 / 3), np.float32(2.0) + np.float32(1e-3)]
