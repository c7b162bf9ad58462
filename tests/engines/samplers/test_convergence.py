"""Orders of convergence on Gaussian data, where the noise prediction and the probability flow are known in closed form.

With `x0 ~ N(0, S^2)` and a state `sqrt(a) x0 + sqrt(1 - a) eps`, whose variance is `v(a) = a S^2 + 1 - a`, the network's `eps` is
`sqrt(1 - a) x / v(a)`, and the flow from one level to another is multiplication by `sqrt(v(a_end) / v(a_start))`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from engines.arrays import Float64
from engines.chain.update import update
from engines.samplers import NoiseSchedule, compile_sampler

S = 0.5
T = 100_000
# Half the log-SNR falls evenly with the timestep, so that all samplers take even steps of what DPM-Solver++ calls lambda.
ALPHAS: Float64 = 1 / (1 + np.exp(-2 * np.linspace(2.5, -3.5, T)))
CHAIN: dict[str, Any] = {
    "num_train_timesteps": T,
    "clip_sample": False,
    "final_sigmas_type": "sigma_min",
    "lower_order_final": False,
    "set_alpha_to_one": False,
}


def variance(a: float) -> float:
    return a * S**2 + 1 - a


def end_error(name: str, steps: int, **config: Any) -> float:
    """Of the state at the level `ALPHAS[0]`, relative to the exact flow's, at unit scale."""
    table = compile_sampler(name, steps, 0.0, NoiseSchedule(**CHAIN | config), ALPHAS)
    x: Any = np.full(1, table.init_sigma)
    history: list[Any] = []
    rows = table.steps - 1 if name == "heun" else table.steps  # the last row of Heun goes on to the clean sample
    for step in map(table.step, range(rows)):
        eps = math.sqrt(1 - step.alpha_bar) / variance(step.alpha_bar) * step.input_scale * x
        x, history = update(x, eps, step, history)
    start = table.init_sigma * table.input_scale[0]
    end = x[0] * (math.sqrt(ALPHAS[0]) if name in ("euler", "heun") else 1.0)
    exact = start * math.sqrt(variance(ALPHAS[0]) / variance(table.alpha_bar[0]))
    return abs(float(end / exact) - 1)


@pytest.mark.parametrize(
    ("name", "order", "config"),
    [
        ("ddim", 1, {"timestep_spacing": "leading"}),
        ("euler", 1, {"timestep_spacing": "linspace"}),
        ("dpm++1", 1, {"timestep_spacing": "linspace"}),
        ("dpm++2m", 2, {"timestep_spacing": "linspace"}),
        ("dpm++2m", 2, {"timestep_spacing": "linspace", "solver_type": "heun"}),
        ("heun", 2, {"timestep_spacing": "linspace"}),
        # The corrector adds one to the predictor's order.
        ("unipc2", 3, {"timestep_spacing": "linspace"}),
        ("unipc3", 4, {"timestep_spacing": "linspace"}),
        ("deis2", 2, {"timestep_spacing": "linspace"}),
        # Of fourth order from the fourth step on; the first steps, which have less to look back on, leave an error of the second.
        ("plms", 2, {"timestep_spacing": "leading"}),
    ],
)
def test_halving_the_steps_of_a_deterministic_chain(name: str, order: int, config: dict[str, Any]) -> None:
    errors = [end_error(name, steps, **config) for steps in (50, 100, 200, 400)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.1)
    assert min(orders) > order - 0.2
    assert errors[0] < 0.1


@pytest.mark.parametrize("steps", [25, 50, 100])
def test_the_third_order_of_deis_is_far_more_exact_than_the_second(steps: int) -> None:
    """Its first step, of first order, leaves an error of the second with the other sign, so that no order can be read off."""
    second, third = (end_error(name, steps, timestep_spacing="linspace") for name in ("deis2", "deis3"))
    assert third < second / 50


def flow_error(name: str, steps: int) -> float:
    """Of the sample of the state `(1 - sigma) x0 + sigma eps` from near noise alone, relative to the flow's."""
    table = compile_sampler(name, steps, 0.0, NoiseSchedule(prediction_type="flow"))
    x: Any = np.ones(1)
    history: list[Any] = []
    shares = np.sqrt(1 - table.alpha_bar) / (np.sqrt(table.alpha_bar) + np.sqrt(1 - table.alpha_bar))
    for step, sigma in zip(map(table.step, range(table.steps)), shares, strict=True):
        velocity = (sigma - (1 - sigma) * S**2) / ((1 - sigma) ** 2 * S**2 + sigma**2)
        x, history = update(x, velocity * x, step, history)
    return abs(float(x[0]) * math.hypot((1 - shares[0]) * S, shares[0]) / S - 1)


@pytest.mark.parametrize(("name", "order", "within"), [("flow-euler", 1, 0.1), ("dpm++1", 1, 0.1), ("dpm++2m", 2, 0.3)])
def test_the_order_on_a_flow(name: str, order: float, within: float) -> None:
    """The steps of DPM-Solver++ are even in the share of noise, not in `lambda`, so that its order is reached slowly."""
    coarse, fine = (flow_error(name, steps) for steps in (100, 400))
    assert fine < 0.01
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=within)
