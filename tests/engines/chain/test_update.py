"""The update line against its formula, entry by entry in Python floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from engines.arrays import Float32
from engines.chain.update import predict, update


@dataclass(frozen=True)
class Coefficients:
    x_coeff: float = 0.75
    out_coeff: float = -0.5
    prediction_coeffs: tuple[float, float] = (2.0, -1.25)
    history_coeffs: tuple[float, ...] = ()
    clip: float | None = None


def values(*numbers: float) -> Float32:
    return np.array(numbers, dtype=np.float32).reshape(1, 1, -1)


X, OUT = values(0.5, -1.0, 2.0), values(1.0, 3.0, -0.25)


def test_prediction_is_p_x_plus_q_out() -> None:
    assert predict(X, OUT, Coefficients()).ravel().tolist() == [-0.25, -5.75, 4.3125]


def test_prediction_is_clipped_where_the_step_says_so() -> None:
    assert predict(X, OUT, Coefficients(clip=1.5)).ravel().tolist() == [-0.25, -1.5, 1.5]


def test_first_order_step_needs_no_prediction() -> None:
    mean, history = update(X, OUT, Coefficients(clip=1.5), [])
    assert mean.ravel().tolist() == [0.375 - 0.5, -0.75 - 1.5, 1.5 + 0.125]
    assert history == []


def test_current_prediction_counts_clipped() -> None:
    mean, history = update(X, OUT, Coefficients(history_coeffs=(2.0,), clip=1.5), [])
    assert mean.ravel().tolist() == [-0.125 - 0.5, -2.25 - 3.0, 1.625 + 3.0]
    assert [m.ravel().tolist() for m in history] == [[-0.25, -1.5, 1.5]]


def test_history_counts_newest_first_and_is_handed_on() -> None:
    earlier = [values(1, 1, 1), values(10, 10, 10), values(100, 100, 100)]
    mean, history = update(X, OUT, Coefficients(history_coeffs=(0.0, 0.5, 0.25)), earlier)
    assert mean.ravel().tolist() == [-0.125 + 3.0, -2.25 + 3.0, 1.625 + 3.0]
    assert [m.ravel()[0].item() for m in history] == [-0.25, 1.0, 10.0]


def test_missing_history_at_the_start_of_a_chain_counts_nothing() -> None:
    mean, history = update(X, OUT, Coefficients(history_coeffs=(1.0, 50.0, 50.0)), [])
    assert mean.ravel().tolist() == [-0.375, -8.0, 5.9375]
    assert len(history) == 1


@pytest.mark.parametrize("history_coeffs", [(), (1.0, 2.0)])
def test_states_stay_float32_and_inputs_untouched(history_coeffs: tuple[float, ...]) -> None:
    x, out, earlier = X.copy(), OUT.copy(), values(1, 2, 3)
    mean, history = update(x, out, Coefficients(history_coeffs=history_coeffs, clip=1.0), [earlier])
    assert {mean.dtype, *(m.dtype for m in history)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(out, OUT)
    np.testing.assert_array_equal(earlier, values(1, 2, 3))
