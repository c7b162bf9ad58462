"""Conventions of times and states, each against its closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.onnx_graph.onnx_adapter import Convention, OnnxAdapter

SIGMAS = NoiseSchedule(sigma_min=0.002, sigma_max=80.0, prediction_type="sample")
BETAS = NoiseSchedule()
T = torch.tensor([0.0, 499.5, 999.0])
LEVELS = torch.tensor([0.002, (0.002 * 80.0) ** 0.5, 80.0])
"""The level at half of the range in log sigma is the geometric mean."""


class Recorder(nn.Module):
    """Returns the state, with as many channels behind it if asked to, and keeps what it was called with."""

    variances = False

    def forward(self, state: torch.Tensor, time: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        self.called = (state, time, *rest)
        return torch.cat([state, state + 1], 1) if self.variances else state


def adapter(schedule: NoiseSchedule, **convention: Any) -> tuple[OnnxAdapter, Recorder]:
    network: Any = Recorder()
    settings = {"time_unit": "timestep", "state_form": "scaled"} | convention
    return OnnxAdapter(network, {}, Convention(schedule, **settings)), network


@pytest.mark.parametrize(
    ("unit", "schedule", "expected"),
    [
        ("timestep", BETAS, T),
        ("fraction", BETAS, T / 1000),
        ("sigma", SIGMAS, LEVELS),
        ("log_sigma", SIGMAS, LEVELS.log()),
        ("c_noise", SIGMAS, LEVELS.log() / 4),
        ("c_noise_1000", SIGMAS, 1000 * LEVELS.log() / 4),
        ("sigma", NoiseSchedule(prediction_type="flow"), T / 1000),
    ],
)
def test_the_time_is_given_in_its_unit(unit: str, schedule: NoiseSchedule, expected: torch.Tensor) -> None:
    called, network = adapter(schedule, time_unit=unit)
    called(torch.zeros(3, 1, 2, 2), T)
    torch.testing.assert_close(network.called[1], expected, rtol=2e-6, atol=1e-7)


def test_levels_of_betas_are_theirs_and_geometric_between_them() -> None:
    levels = np.sqrt(1 / alpha_bar(BETAS) - 1)
    found = Convention(BETAS, "sigma", "scaled").sigma(torch.tensor([0.0, 10.5, 999.0], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), [levels[0], np.sqrt(levels[10] * levels[11]), levels[999]], rtol=1e-12)


@pytest.mark.parametrize(("schedule", "levels"), [(SIGMAS, LEVELS), (BETAS, None)])
def test_a_state_of_added_noise_is_that_of_unit_variance_times_its_deviation(schedule: NoiseSchedule, levels: torch.Tensor | None) -> None:
    """`x0 + sigma eps` from `sqrt(a) x0 + sqrt(1 - a) eps`."""
    called, network = adapter(schedule, state_form="added")
    sigma = (called.convention.sigma(T) if levels is None else levels).double()
    a = 1 / (1 + sigma**2)
    x0, eps = 0.7, -1.3
    called((a.sqrt() * x0 + (1 - a).sqrt() * eps).reshape(3, 1, 1, 1), T)
    torch.testing.assert_close(network.called[0].flatten(), x0 + sigma * eps, rtol=1e-6, atol=1e-6)


def test_edm_preconditioning_is_that_of_its_paper() -> None:
    called, network = adapter(SIGMAS, state_form="added", time_unit="c_noise", preconditioning="edm", sigma_data=0.3)
    x, s, d = torch.randn(3, 1, 2, 2), LEVELS.reshape(3, 1, 1, 1), 0.3
    y = x * torch.sqrt(1 + s**2)
    out = called(x, T)
    torch.testing.assert_close(network.called[0], y / torch.sqrt(s**2 + d**2), rtol=1e-5, atol=1e-6)
    expected = d**2 / (s**2 + d**2) * y + s * d / torch.sqrt(s**2 + d**2) * network.called[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_a_consistency_model_is_the_identity_at_the_lowest_level() -> None:
    called, _ = adapter(SIGMAS, state_form="added", time_unit="c_noise", preconditioning="consistency")
    x = torch.randn(1, 1, 2, 2)
    torch.testing.assert_close(called(x, torch.zeros(1)), x, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_is_dropped() -> None:
    called, network = adapter(BETAS)
    network.variances = True
    x = torch.randn(2, 3, 2, 2)
    assert torch.equal(called(x, torch.zeros(2)), x)
