"""The affine maps undo `x = sqrt(a) x0 + sqrt(1 - a) eps` for what each kind of network puts out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.errors import UsageError
from engines.samplers.levels.parameterization import epsilon_coeffs, prediction_coeffs

x0, eps = 0.7, -1.3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_recovers_clean_sample_and_noise(prediction_type: Any) -> None:
    a = np.array([0.001, 0.3, 0.9999])
    x = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
    out = {"epsilon": eps + 0 * a, "v_prediction": np.sqrt(a) * eps - np.sqrt(1 - a) * x0, "sample": x0 + 0 * a}[prediction_type]
    P, Q = prediction_coeffs(prediction_type, a).T
    R, T = epsilon_coeffs(prediction_type, a).T
    np.testing.assert_allclose(P * x + Q * out, x0, rtol=1e-12)
    np.testing.assert_allclose(R * x + T * out, eps, rtol=1e-12)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_holds_at_zero_signal(prediction_type: Any) -> None:
    a = np.zeros(1)
    out = {"v_prediction": -x0, "sample": x0}[prediction_type]
    ((P, Q),), ((R, T),) = prediction_coeffs(prediction_type, a), epsilon_coeffs(prediction_type, a)
    assert P * eps + Q * out == x0
    assert R * eps + T * out == eps


def test_refuses_epsilon_at_zero_signal() -> None:
    with pytest.raises(UsageError, match=r"(?s)alpha_bar = 0.*v_prediction or sample.*rescale_betas_zero_snr to false"):
        prediction_coeffs("epsilon", np.array([0.0, 0.5]))
