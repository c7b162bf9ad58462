"""PLMS by the paper's own arithmetic: states and outputs of before are at hand there, while the table has rows of one state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.chain.update import update
from engines.errors import UsageError
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from engines.samplers.levels.alphas import alpha_bar

SCHEDULE = NoiseSchedule(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
ALPHAS = alpha_bar(SCHEDULE)


def network(x: float, t: float) -> float:
    return math.tanh(x - 0.0003 * t)


def by_table(table: SamplerTable) -> float:
    x: Any = np.array([0.8])
    history: list[Any] = []
    for row in map(table.step, range(table.steps)):
        x, history = update(x, np.array([network(float(x[0]), row.timestep)]), row, history)
    return float(x[0])


def transfer(x: float, eps: float, t: int, t_next: int) -> float:
    """Equation 9, whose fraction is DDIM's step."""
    a, a_next = ALPHAS[t], ALPHAS[max(t_next, 0)]
    return math.sqrt(a_next) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - a_next) * eps


def by_paper(steps: int) -> float:
    """The first step by the average of two outputs, and then equation 12 with as many outputs as there are."""
    ratio = 1000 // steps
    visited = [ratio * i + 1 for i in reversed(range(steps))]
    first = network(0.8, visited[0])
    trial = transfer(0.8, first, visited[0], visited[0] - ratio)
    x = transfer(0.8, (first + network(trial, visited[1])) / 2, visited[0], visited[1])
    outputs = [first]
    for t in visited[1:]:
        outputs = [network(x, t), *outputs][:4]
        weights = {2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}[len(outputs)]
        x = transfer(x, sum(w * out for w, out in zip(weights, outputs, strict=True)), t, t - ratio)
    return x


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 6, 20])
def test_the_chain_is_that_of_the_paper(steps: int) -> None:
    assert by_table(compile_sampler("plms", steps, 0.0, SCHEDULE)) == pytest.approx(by_paper(steps), rel=1e-12)


def test_the_second_timestep_is_visited_twice() -> None:
    assert compile_sampler("plms", 5, 0.0, SCHEDULE).timestep.tolist() == [801, 601, 601, 401, 201, 1]
    assert compile_sampler("plms", 1, 0.0, SCHEDULE).timestep.tolist() == [1]


def test_no_row_but_the_second_uses_the_second_output() -> None:
    H = compile_sampler("plms", 12, 0.0, SCHEDULE).history_coeffs
    assert H.shape == (13, 5)
    assert not H[:, 0].any(), "that is the row's own output, which has a coefficient already"
    assert [H[row, row - 1] for row in (2, 3, 4, 5)] == [0, 0, 0, 0]
    assert H[1, 1] != 0


def test_runge_kutta_steps_are_refused() -> None:
    schedule = SCHEDULE.model_copy(update={"skip_prk_steps": False})
    with pytest.raises(UsageError, match=r"(?s)Runge-Kutta.*skip_prk_steps = false.*set skip_prk_steps to true.*ddim or dpm\+\+2m"):
        compile_sampler("plms", 20, 0.0, schedule)
    compile_sampler("ddim", 20, 0.0, schedule)
