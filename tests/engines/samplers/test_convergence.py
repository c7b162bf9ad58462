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
    for step in map(table.step, range(table.steps)):
        eps = math.sqrt(1 - step.alpha_bar) / variance(step.alpha_bar) * step.input_scale * x
        x, history = update(x, eps, step, history)
    start = table.init_sigma * table.input_scale[0]
    end = x[0] * (math.sqrt(ALPHAS[0]) if name == "euler" else 1.0)
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


def flow_error(steps: int) -> float:
    """Of the sample of the state `(1 - sigma) x0 + sigma eps`, which starts as noise alone: the flow multiplies it by S."""
    table = compile_sampler("flow-euler", steps, 0.0, NoiseSchedule(prediction_type="flow"))
    x: Any = np.ones(1)
    for step in map(table.step, range(table.steps)):
        sigma = step.timestep / 1000
        velocity = (sigma - (1 - sigma) * S**2) / ((1 - sigma) ** 2 * S**2 + sigma**2)
        x, _ = update(x, velocity * x, step, [])
    return abs(float(x[0]) / S - 1)


def test_flow_matching_euler_is_of_first_order() -> None:
    coarse, fine = (flow_error(steps) for steps in (100, 400))
    assert fine < 0.01
    assert math.log(coarse / fine, 4) == pytest.approx(1, abs=0.1)
