"""The sampling loop against textbook DDIM (Song et al. 2020, eq. 12) on the tiny networks' own arithmetic, in float64."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.arrays import Float32, Float64, Int64
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches, rows_of
from engines.chain.schedule import Schedule, StepShift
from engines.networks.engine_bank import EngineBank

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

SHAPE = (1, 8, 8)
NULL_CLASS = 3
SAMPLES = np.array([4, 0, 9], dtype=np.int64)
ROWS = np.array([1, 2, 2], dtype=np.int64)
NOISE = NoiseSource(11, SHAPE)


def ddim(tiny: TinyBundle, precisions: list[str], *, corrected: bool, guidance: float = 1.5) -> Float64:
    """Final states of `SAMPLES`, as eq. 12 writes them."""
    corrections = [step["corrections"] for step in json.loads((tiny.folder / "schedules/default.json").read_text())["steps"]]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x = NOISE.start(SAMPLES).astype(np.float64)
    for i, t in enumerate([750, 500, 250, 0]):
        network = tiny.networks[precisions[i]]
        conditional, unconditional = network(x, t, ROWS), network(x, t, np.full_like(ROWS, NULL_CLASS))
        eps = unconditional + guidance * (conditional - unconditional)
        a, a_prev = alpha_bar[t], alpha_bar[t - 250] if t else 1.0
        sigma = fresh = np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
        if corrected:
            correction = corrections[i][precisions[i]]
            eps = correction["gain"][0] * eps + correction["offset"][0] + correction["state_gain"][0] * x
            fresh = correction["sigma_corrected"]
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        x = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - sigma**2) * eps + fresh * NOISE.step(i, SAMPLES)
    return x


def silent(x: Float32, timestep: float, rows: Int64) -> Float32:
    """A network that predicts nothing at all."""
    assert timestep >= 0
    assert len(rows) == len(x)
    return np.zeros((1, *x.shape), dtype=np.float32)


def assert_same(states: Float32, expected: Float64) -> None:
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, expected, rtol=0, atol=2e-5 * float(abs(expected).max()))


@pytest.fixture(scope="module")
def schedule(tiny: TinyBundle) -> Schedule:
    return Bundle.open(tiny.folder).schedule()


@pytest.fixture(scope="module")
def bank(tiny: TinyBundle) -> EngineBank:
    return EngineBank(Bundle.open(tiny.folder), 1.5)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("precision", [None, "fp32", "w4a8"])
def test_chain_is_textbook_ddim(tiny: TinyBundle, schedule: Schedule, bank: EngineBank, precision: str | None, corrected: bool) -> None:
    chain = Chain(schedule, bank, precision, corrected)
    taken = ["w4a8", "w4a8", "w8a8", "fp32"] if precision is None else [precision] * 4
    assert list(chain.step_precisions) == taken
    assert_same(chain.sample(NOISE, SAMPLES, ROWS), ddim(tiny, taken, corrected=corrected))


def test_the_choices_that_the_oracle_tells_apart_are_far_apart(tiny: TinyBundle) -> None:
    results = [ddim(tiny, [name] * 4, corrected=corrected) for name in ("fp32", "w4a8") for corrected in (True, False)]
    scale = max(float(abs(result).max()) for result in results)
    differences = [float(abs(a - b).max()) for n, a in enumerate(results) for b in results[:n]]
    assert len(differences) == 6
    assert min(differences) > 1e-3 * scale


def test_a_corrected_chain_of_the_schedules_own_precisions_takes_shifted_steps(schedule: Schedule) -> None:
    seen: list[tuple[float, float]] = []

    def network(x: Float32, timestep: float, rows: Int64) -> Float32:
        del rows
        seen.append((timestep, float(x[0, 0, 0, 0])))
        return np.zeros((1, *x.shape), dtype=np.float32)

    shift = StepShift(timestep=760.5, input_scale=0.25, x_coeff=3.0, out_coeff=0.0, prediction_coeffs=(1.0, 0.0))
    first, *others = (step.model_copy(update={"sigma": 0.0}) for step in schedule.steps)
    chain = Chain(
        schedule.model_copy(update={"steps": (first.model_copy(update={"shifted": shift}), *others)}),
        {"fp32": network, "w4a8": network},
        "w4a8",
    )
    chain.sample(NOISE, SAMPLES, ROWS)
    replace(chain, corrected=False).sample(NOISE, SAMPLES, ROWS)
    replace(chain, precision="fp32").sample(NOISE, SAMPLES, ROWS)
    x, z = (float(noise[0, 0, 0, 0]) for noise in (NOISE.start(SAMPLES), NOISE.step(0, SAMPLES)))
    shifted = 3.0 * x + first.corrections["w4a8"].sigma_corrected * z
    assert [timestep for timestep, _ in seen[:2] + seen[4:6]] == [760.5, 500.0, 750.0, 500.0]
    assert [value for _, value in seen[:2] + seen[4:6]] == pytest.approx([0.25 * x, shifted, x, first.x_coeff * x])
    assert seen[8] == seen[4], "another precision left another noise"


def test_the_schedules_own_chain_takes_the_corrections_of_the_mixture(schedule: Schedule) -> None:
    other = schedule.steps[0].corrections["w4a8"].model_copy(update={"gain": (7.0,), "sigma_corrected": 0.125})
    chain = Chain(schedule.model_copy(update={"steps": tuple(step.model_copy(update={"mixed": other}) for step in schedule.steps)}), {})
    taken, alone, plain = (
        [each.move(step) for step in chain.schedule.steps]
        for each in (chain, replace(chain, precision="w4a8"), replace(chain, corrected=False))
    )
    assert {(move.gain, move.sigma) for move in taken} == {((7.0,), 0.125)}
    assert [move.gain for move in alone] == [step.corrections["w4a8"].gain for step in schedule.steps]
    assert [move.sigma for move in plain] == [step.sigma for step in schedule.steps]


def test_guidance_can_be_another_than_the_fitted_one(tiny: TinyBundle, schedule: Schedule, bank: EngineBank) -> None:
    states = Chain(schedule, bank, "fp32", corrected=False, guidance=4.0).sample(NOISE, SAMPLES, ROWS)
    assert_same(states, ddim(tiny, ["fp32"] * 4, corrected=False, guidance=4.0))


def test_guidance_one_is_the_conditional_branch(tiny: TinyBundle, schedule: Schedule) -> None:
    bank = EngineBank(Bundle.open(tiny.folder), 1.0)
    states = Chain(schedule, bank, "fp32", corrected=False, guidance=1.0).sample(NOISE, SAMPLES, ROWS)
    assert_same(states, ddim(tiny, ["fp32"] * 4, corrected=False, guidance=1.0))


def test_a_sample_does_not_depend_on_its_batch_or_place(schedule: Schedule, bank: EngineBank) -> None:
    chain, samples = Chain(schedule, bank, "fp32"), np.arange(20, dtype=np.int64)
    rows = rows_of(samples, NOISE, 3, None)
    together = chain.sample(NOISE, samples, rows)
    shuffled = np.random.default_rng(0).permutation(samples)
    apart = [chain.sample(NOISE, batch, rows[batch]) for batch in batches(shuffled, 7)]
    assert [len(part) for part in apart] == [7, 7, 6]
    np.testing.assert_allclose(np.concatenate(apart), together[shuffled], rtol=0, atol=1e-4)


def test_all_randomness_is_bit_equal_in_any_batch(schedule: Schedule) -> None:
    chain, samples = Chain(schedule, {"fp32": silent}, "fp32"), np.arange(10, dtype=np.int64)
    together = chain.sample(NOISE, samples, samples)
    apart = [chain.sample(NOISE, batch, batch) for batch in batches(samples, 3)]
    np.testing.assert_array_equal(np.concatenate(apart), together)
    assert np.unique(together).size == together.size


def test_networks_see_the_scaled_state_the_timestep_and_the_rows(schedule: Schedule) -> None:
    seen: list[tuple[float, list[int], float]] = []

    def network(x: Float32, timestep: float, rows: Int64) -> Float32:
        seen.append((timestep, rows.tolist(), float(abs(x).max())))
        return np.zeros((1, *x.shape), dtype=np.float32)

    halved = tuple(step.model_copy(update={"input_scale": 0.5}) for step in schedule.steps)
    scaled = schedule.model_copy(update={"steps": halved, "init_sigma": 3.0})
    chain = Chain(scaled, {"fp32": network}, "fp32")
    steps: list[int] = []
    chain.sample(NOISE, SAMPLES, ROWS, on_step=lambda: steps.append(len(seen)))
    assert [(t, rows) for t, rows, _ in seen] == [(t, [1, 2, 2]) for t in (750.0, 500.0, 250.0, 0.0)]
    assert seen[0][2] == pytest.approx(1.5 * float(abs(NOISE.start(SAMPLES)).max()), rel=1e-6)
    assert steps == [1, 2, 3, 4]


def test_a_step_without_noise_draws_none(schedule: Schedule) -> None:
    class StartOnly(NoiseSource):
        def step(self, step: int, samples: Int64) -> Float32:
            raise AssertionError(f"noise drawn at step {step} for {samples}")

    deterministic = schedule.model_copy(update={"steps": tuple(step.model_copy(update={"sigma": 0.0}) for step in schedule.steps)})
    chain = Chain(deterministic, {"fp32": silent}, "fp32", corrected=False)
    assert chain.sample(StartOnly(11, SHAPE), SAMPLES, ROWS).shape == (3, *SHAPE)
    with pytest.raises(AssertionError, match="noise drawn at step 0"):
        replace(chain, corrected=True).sample(StartOnly(11, SHAPE), SAMPLES, ROWS)


@pytest.mark.parametrize("states", [0, 1, 2, 100])
def test_samples_do_not_depend_on_how_far_ahead_noise_is_drawn(schedule: Schedule, bank: EngineBank, monkeypatch: Any, states: int) -> None:
    noise, samples = NoiseSource(3, (1, 8, 8)), np.arange(2)
    expected = Chain(schedule, bank).sample(noise, samples, samples)
    monkeypatch.setattr("engines.chain.sampling.DRAWN_BYTES", states * 2 * 64 * 4)
    np.testing.assert_array_equal(Chain(schedule, bank).sample(noise, samples, samples), expected)


def test_timesteps_are_those_that_each_network_is_given(schedule: Schedule) -> None:
    given: list[tuple[str, float]] = []

    def denoiser(name: str) -> Denoiser:
        def network(x: Float32, timestep: float, rows: Int64) -> Float32:
            given.append((name, timestep))
            return silent(x, timestep, rows)

        return network

    chain = Chain(schedule, {name: denoiser(name) for name in schedule.precisions}, guidance=1.0)
    chain.sample(NoiseSource(0, (1, 8, 8)), np.arange(1), np.arange(1))
    assert chain.timesteps == {asked: [timestep for name, timestep in given if name == asked] for asked, _ in given}
    assert len(chain.timesteps) > 1


def test_batches_are_consecutive_and_complete() -> None:
    pieces: list[list[Any]] = [piece.tolist() for piece in batches(np.arange(5, 12), 3)]
    assert pieces == [[5, 6, 7], [8, 9, 10], [11]]
    assert list(batches(np.arange(0), 3)) == []


def test_chosen_rows_cycle_by_sample_number_and_others_are_drawn() -> None:
    samples: NDArray[np.int64] = np.array([6, 7, 8, 9, 0])
    assert rows_of(samples, NOISE, 10, np.array([3, 7, 5])).tolist() == [3, 7, 5, 3, 3]
    drawn = rows_of(samples, NOISE, 10, None)
    np.testing.assert_array_equal(drawn, NOISE.row(samples, 10))
    assert rows_of(samples[2:3], NOISE, 10, None).item() == drawn[2]


class Kept(np.ndarray[Any, Any]):
    """Features that a set can hold."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Keeping:
    """A network that predicts nothing, and counts the features in memory."""

    def __init__(self) -> None:
        self.alive = weakref.WeakSet[Kept]()

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        return silent(x, timestep, rows)

    def keep(self, x: Float32, timestep: float, rows: Int64) -> tuple[Float32, Float32]:
        kept = np.zeros((len(x), 1, 4), np.float32).view(Kept)
        self.alive.add(kept)
        return silent(x, timestep, rows), kept

    def reuse(self, x: Float32, timestep: float, rows: Int64, kept: Float32) -> Float32:
        assert len(kept) == len(x)
        return silent(x, timestep, rows)


@pytest.mark.parametrize(("weight", "sets"), [(None, [1, 1, 1, 1]), (0.5, [1, 1, 2, 2])])
def test_features_of_two_steps_are_kept_only_if_steps_extrapolate(cut: TinyBundle, weight: float | None, sets: list[int]) -> None:
    """Steps 0 and 2 compute everything; steps 1 and 3 reuse."""
    schedule, network, found = Bundle.open(cut.folder).schedule(), Keeping(), list[int]()
    steps = [step.model_copy(update={"extrapolation": weight if step.step == 3 else None}) for step in schedule.steps]
    chain = Chain(schedule.model_copy(update={"steps": tuple(steps)}), {}, guidance=1.0)
    chain = replace(chain, denoisers=dict.fromkeys(chain.networks, network))
    chain.sample(NOISE, SAMPLES, ROWS, on_step=lambda: found.append(len(network.alive)))
    assert found == sets
