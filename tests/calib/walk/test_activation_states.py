"""States for the activation ranges are those of the full-precision sampler, spread over its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calib.walk.activation_states import States, draw_states
from calib.walk.calibration_samples import CalibrationSamples
from engines.arrays import Float32, Int64
from engines.chain.noise import NoiseSource
from engines.chain.update import update
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler

SHAPE = (2, 3, 3)
STEPS = 5


def _network(x: Float32, timestep: float, rows: Int64) -> Float32:
    """Depends on all that it is given."""
    return np.asarray(0.3 * x + 1e-4 * timestep + 0.1 * rows[:, None, None, None], dtype=np.float32)[None]


def _table(input_scale: float = 1.0) -> SamplerTable:
    table = compile_sampler("ddim", STEPS, 1.0, NoiseSchedule(clip_sample=False))
    return replace(table, input_scale=np.full(STEPS, input_scale))


def _draw(count: int, chains: int = 8, input_scale: float = 1.0) -> tuple[States, list[int]]:
    done: list[int] = []
    return draw_states(_table(input_scale), _network, 1.0, _samples(chains), count, 3, done.append), done


def _samples(chains: int) -> CalibrationSamples:
    return CalibrationSamples(NoiseSource(seed=3, shape=SHAPE), table_rows=3, count=chains)


def _visited(chains: int = 8) -> list[Float32]:
    """The states of every step, by this test's own walk."""
    table, samples = _table(), _samples(chains)
    x = samples.noise.start(samples.numbers)
    history: list[Float32] = []
    visited: list[Float32] = []
    for i in range(STEPS):
        step = table.step(i)
        visited.append(x)
        x, history = update(x, _network(x, step.timestep, samples.rows)[0], step, history)
        x = x + np.float32(step.sigma) * samples.noise.step(i, samples.numbers)
    return visited


@pytest.mark.parametrize(("count", "a_step"), [(20, 4), (21, 5), (1, 1), (40, 8), (1000, 8)])
def test_every_step_gives_the_same_number_of_states_and_none_twice(count: int, a_step: int) -> None:
    states, _ = _draw(count)
    assert states.samples.shape == (a_step * STEPS, *SHAPE)
    timesteps, counts = np.unique(states.timesteps, return_counts=True)
    assert timesteps.tolist() == sorted(_table().timestep.tolist())
    assert set(counts.tolist()) == {a_step}
    assert len(np.unique(states.samples.reshape(len(states.samples), -1), axis=0)) == len(states.samples)


def test_states_are_those_of_the_full_precision_sampler_with_their_own_rows() -> None:
    states, _ = _draw(20)
    for n, (sample, timestep, row) in enumerate(zip(states.samples, states.timesteps, states.rows, strict=True)):
        step, chain = n // 4, n % 8  # four a step, eight chains in turn
        assert timestep == _table().timestep[step]
        np.testing.assert_allclose(sample, _visited()[step][chain], rtol=1e-6, atol=1e-6)
        assert row == _samples(8).rows[chain]


def test_states_are_scaled_as_the_network_takes_them() -> None:
    states, _ = _draw(STEPS, input_scale=0.5)
    np.testing.assert_allclose(states.samples[0], 0.5 * _visited()[0][0], rtol=1e-6)


def test_steps_of_every_batch_are_reported() -> None:
    _, done = _draw(5)
    assert done == list(range(1, 3 * STEPS + 1)), "8 chains in batches of 3"


def test_states_survive_a_file(tmp_path: Path) -> None:
    states, _ = _draw(10)
    states.save(tmp_path / "states.npz")
    loaded = States.load(tmp_path / "states.npz")
    for name in ("samples", "timesteps", "rows"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(states, name))
        assert getattr(loaded, name).dtype == getattr(states, name).dtype


@pytest.mark.parametrize(("count", "found"), [(1, 1), (5, 5), (7, 7), (20, 20), (500, 20)])
def test_first_states_are_spread_over_the_timesteps(count: int, found: int) -> None:
    states, _ = _draw(20)
    first = states.first(count)
    assert len(first.rows) == len(first.samples) == len(first.timesteps) == found
    assert len(np.unique(first.timesteps)) == min(found, STEPS)


def test_states_of_some_timesteps() -> None:
    states, _ = _draw(20)
    known = np.unique(states.timesteps).astype(np.float64)
    chosen = states.at(known[[0, 2]])
    assert set(chosen.timesteps.tolist()) == {known[0], known[2]}
    np.testing.assert_array_equal(chosen.samples, states.samples[np.isin(states.timesteps, known[[0, 2]])])
    assert len(chosen.rows) == len(chosen.samples) == 2 * len(states.rows) // STEPS
