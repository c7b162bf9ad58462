"""What networks see along a chain, against the chain written out with numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.apps.compare.visits import Visit, spread_steps, tell_visits, visits
from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.errors import UsageError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROWS = np.array([2, 0, 1, 1, 0], dtype=np.int64)


class Linear:
    """`0.5 x + t / 1000`, on both branches; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
        self.calls += 1
        out = np.float32(0.5) * x + np.float32(timestep / 1000)
        return np.stack([out, out])


@pytest.fixture
def schedule(tiny: TinyBundle) -> Schedule:
    return Bundle.open(tiny.folder).schedule()


def chain(schedule: Schedule) -> Chain:
    return Chain(schedule, {"fp32": Linear()}, "fp32", corrected=False)


def by_hand(schedule: Schedule, noise: NoiseSource) -> list[Float32]:
    """The states of the five samples at every step."""
    samples, states = np.arange(5, dtype=np.int64), []
    x = schedule.init_sigma * noise.start(samples)
    for step in schedule.steps:
        states.append(step.input_scale * x)
        out = 0.5 * step.input_scale * x + step.timestep / 1000
        x = step.x_coeff * x + step.out_coeff * out + step.sigma * noise.step(step.step, samples)
    return states


@pytest.mark.parametrize("batch_size", [2, 5])
def test_states_are_those_of_the_chain(schedule: Schedule, batch_size: int) -> None:
    noise = NoiseSource(4, (1, 8, 8))
    found = list(visits(chain(schedule), (0, 2), noise, ROWS, batch_size))
    expected = by_hand(schedule, noise)
    assert [visit.step for visit in found] == [0, 2] * -(-5 // batch_size)
    for visit in found:
        assert visit.timestep == schedule.steps[visit.step].timestep
        np.testing.assert_array_equal(visit.rows, ROWS[visit.samples])
        np.testing.assert_allclose(visit.x, expected[visit.step][visit.samples], atol=1e-5)
    assert sorted(np.concatenate([visit.samples for visit in found if visit.step == 0])) == list(range(5))


def test_the_walk_ends_before_the_network_of_the_last_step_that_is_wanted(schedule: Schedule) -> None:
    network, told, seen = Linear(), list[Visit](), list[int]()
    walked = replace(chain(schedule), denoisers={"fp32": network})
    tell_visits(walked, 2, NoiseSource(4, (1, 8, 8)), np.arange(5), ROWS, told.append, lambda: seen.append(1))
    assert (network.calls, len(seen), [visit.step for visit in told]) == (1, 2, [0, 1])


def test_steps_are_spread_over_the_chain(schedule: Schedule) -> None:
    assert spread_steps(schedule, None) == (0, 1, 2, 3)
    assert spread_steps(schedule, 2) == (0, 3)
    assert spread_steps(schedule, 1) == (0,)
    with pytest.raises(UsageError, match="fewer steps"):
        spread_steps(schedule, 5)
