"""The walk itself: which network sees what and how often, who takes the step, and what is left behind."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from calib.walk.policy import FixedPolicy
from calib.walk.walk import StepResult, Walk, WalkPlan
from engines.arrays import Float32, Int64
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.chain.update import update
from engines.errors import PtqdError
from engines.samplers.table import SamplerTable
from tests.calib.walk.gaussian_walk import (
    SHAPE,
    STEPS,
    Exact,
    Planted,
    always,
    clipped,
    ddim,
    take,
    walk_plan,
)


def test_every_network_is_evaluated_once_at_every_state(tmp_path: Path) -> None:
    plan = walk_plan(samples=70)
    plan = replace(plan, quantized={**plan.quantized, "fp32": plan.reference})
    take(plan, tmp_path)
    timesteps = ddim().timestep
    for network in (plan.reference, plan.quantized["low"], plan.quantized["high"]):
        assert isinstance(network, Exact | Planted)
        assert [timestep for timestep, _ in network.calls] == np.repeat(timesteps, 3).tolist()
        for step in range(STEPS):
            seen = [rows for _, rows in network.calls[3 * step : 3 * step + 3]]
            assert [len(rows) for rows in seen] == [32, 32, 6]
            np.testing.assert_array_equal(np.concatenate(seen), np.arange(70))


def test_a_precision_that_is_the_reference_needs_no_correction(tmp_path: Path) -> None:
    plan = walk_plan(policy=always("fp32"))
    plan = replace(plan, quantized={"fp32": plan.reference, **plan.quantized})
    results, final = take(plan, tmp_path)
    for result in results:
        correction = result.corrections["fp32"]
        assert (correction.affine.gain.tolist(), correction.affine.offset.tolist()) == ([1.0] * 3, [0.0] * 3)
        assert correction.sigma_corrected == pytest.approx(ddim().sigma[result.step])
        assert (correction.residual_variance, correction.unabsorbed_variance) == (0, 0)
        assert result.noise["fp32"].snr_db == math.inf
    np.testing.assert_array_equal(final, take(replace(plan, trajectory="fp"), tmp_path)[1])


def test_precisions_that_no_step_takes_can_be_left_out(tmp_path: Path) -> None:
    plan = walk_plan(policy=always("high"))
    alone = replace(plan, quantized={"high": plan.quantized["high"]})
    (all_results, all_states), (results, states) = take(plan, tmp_path), take(alone, tmp_path)
    assert [list(result.corrections) for result in results] == [["high"]] * STEPS
    np.testing.assert_array_equal(states, all_states)
    for one, other in zip(results, all_results, strict=True):
        np.testing.assert_array_equal(one.moments["high"].scatter, other.moments["high"].scatter)


def test_batch_size_does_not_matter_beyond_rounding(tmp_path: Path) -> None:
    plan = walk_plan(table=clipped(ddim(), clip=1.5, history=2), policy=always("high"))
    (small, small_states), (large, large_states) = (take(replace(plan, batch_size=size), tmp_path) for size in (7, 48))
    np.testing.assert_allclose(small_states, large_states, atol=2e-4)
    for one, other in zip(small, large, strict=True):
        assert one.moments["low"].samples.tolist() == other.moments["low"].samples.tolist() == [12] * 4
        np.testing.assert_allclose(one.moments["low"].scatter, other.moments["low"].scatter, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(one.corrections["low"].affine.gain, other.corrections["low"].affine.gain, atol=1e-4)
        assert one.corrections["low"].sigma_corrected == pytest.approx(other.corrections["low"].sigma_corrected, abs=1e-4)


def test_the_fp_trajectory_is_that_of_the_full_precision_sampler(tmp_path: Path) -> None:
    plan = walk_plan()
    table, noise, samples = plan.table, plan.noise, plan.rows
    visited: list[Float32] = []
    _, final = take(replace(plan, trajectory="fp"), tmp_path, lambda _, states: visited.append(np.array(states)))
    x, exact = noise.start(samples), Exact()
    for i in range(STEPS):
        np.testing.assert_array_equal(visited[i], x)
        x, _ = update(x, exact(x, table.timestep[i], samples)[0], table.step(i), [])
        x = x + np.float32(table.sigma[i]) * noise.step(i, samples) if table.sigma[i] else x
    np.testing.assert_array_equal(final, x)
    assert np.abs(final - take(plan, tmp_path)[1]).max() > 0.01


def _schedule(plan: WalkPlan, results: list[StepResult]) -> Schedule:
    steps = []
    for result in results:
        row = plan.table.step(result.step)
        corrections = {
            name: Correction(
                gain=tuple(fit.affine.gain.tolist()), offset=tuple(fit.affine.offset.tolist()),
                state_gain=tuple(fit.affine.state_gain.tolist()), sigma_corrected=fit.sigma_corrected,
                residual_variance=fit.residual_variance, unabsorbed_variance=fit.unabsorbed_variance,
            )
            for name, fit in result.corrections.items()
        }  # fmt: skip
        steps.append(Step(
            step=result.step, timestep=result.timestep, precision=result.chosen, x_coeff=row.x_coeff, out_coeff=row.out_coeff,
            prediction_coeffs=row.prediction_coeffs, history_coeffs=row.history_coeffs, input_scale=row.input_scale, sigma=row.sigma,
            clip=row.clip, corrections=corrections,
        ))  # fmt: skip
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=1.0, guidance=plan.guidance),
        correction=CorrectionRecord(mode="signed", variance="schedule"),
        policy="fixed", init_sigma=plan.table.init_sigma, steps=tuple(steps),
    )  # fmt: skip


@pytest.mark.parametrize("table", [ddim(), replace(clipped(ddim(), clip=1.5, history=2), init_sigma=1.3, input_scale=np.full(STEPS, 0.9))])
def test_the_run_time_retraces_the_walk(table: SamplerTable, tmp_path: Path) -> None:
    mixed = FixedPolicy(("low",) * 8 + ("high",) * 12)
    plan = replace(walk_plan(table=table, policy=mixed), batch_size=48)
    results, final = take(plan, tmp_path)
    assert [result.chosen for result in results] == list(mixed.precisions)
    chain = Chain(_schedule(plan, results), plan.quantized)
    np.testing.assert_array_equal(chain.sample(NoiseSource(seed=7, shape=SHAPE), plan.rows, plan.rows), final)


def test_the_policy_decides_who_takes_the_step(tmp_path: Path) -> None:
    low, high = (take(walk_plan(policy=always(name)), tmp_path)[1] for name in ("low", "high"))
    assert np.abs(low - high).max() > 0.01
    chosen = [result.chosen for result in take(walk_plan(), tmp_path)[0]]
    assert (chosen[0], chosen[-1]) == ("low", "high")


def test_states_are_those_the_result_was_fitted_on_and_then_the_samples(tmp_path: Path) -> None:
    plan = replace(walk_plan(table=replace(ddim(), init_sigma=2.5)), batch_size=10)
    with Walk(plan, tmp_path) as walk:
        taken = iter(walk)
        first = next(taken)
        np.testing.assert_array_equal(walk.states, np.float32(2.5) * plan.noise.start(plan.rows))
        assert walk.states.dtype == np.float32
        assert first.moments["low"].mean_of("x") == pytest.approx(np.array(walk.states, np.float64).mean(axis=(0, 2, 3)))
        before = np.array(walk.states)
        next(taken)
        assert np.abs(walk.states - before).max() > 0.01


def test_networks_see_the_scaled_state_and_moments_the_state(tmp_path: Path) -> None:
    @dataclass
    class Recorder:
        seen: list[Float32] = field(default_factory=list)

        def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
            del timestep, rows
            self.seen.append(x)
            return x[None]

    recorder = Recorder()
    table = replace(ddim(), input_scale=np.full(STEPS, 0.25))
    plan = replace(walk_plan(table=table, policy=always("fp32")), reference=recorder, quantized={"fp32": recorder})
    with Walk(plan, tmp_path) as walk:
        result = next(iter(walk))
        np.testing.assert_array_equal(np.concatenate(recorder.seen), np.float32(0.25) * walk.states)
    np.testing.assert_allclose(result.moments["fp32"].variance("x"), 16 * result.moments["fp32"].variance("e"), rtol=1e-6)


@pytest.mark.parametrize("broken", ["reference", "low"])
def test_outputs_that_are_not_finite_end_the_walk(broken: str, tmp_path: Path) -> None:
    def spoilt(x: Float32, timestep: float, rows: Int64) -> Float32:
        out = Exact()(x, timestep, rows)
        out[0, -1, 0, 0] = np.nan if timestep < 900 else 0.0
        return out

    plan = walk_plan()
    plan = replace(plan, reference=spoilt) if broken == "reference" else replace(plan, quantized={**plan.quantized, "low": spoilt})
    with pytest.raises(PtqdError, match=f"(?s){'full precision' if broken == 'reference' else 'low'}.*step 2"):
        take(plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    with Walk(walk_plan(), folder) as walk:
        next(iter(walk))
        assert sum(path.stat().st_size for path in folder.rglob("*")) >= 4 * walk.states.nbytes
    assert list(folder.iterdir()) == []


def _peak_bytes(samples: int, folder: Path) -> int:
    plan = walk_plan(samples, table=clipped(ddim(steps=2), 1.0, 2), policy=FixedPolicy(("low", "low")))
    plan = replace(plan, quantized={"low": Exact()})
    tracemalloc.start()
    with Walk(plan, folder) as walk:
        assert len(list(walk)) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_samples(tmp_path: Path) -> None:
    few, many = _peak_bytes(64, tmp_path), _peak_bytes(2048, tmp_path)
    added_states = (2048 - 64) * math.prod(SHAPE) * 4
    assert many - few < 0.3 * added_states, "not even the states of the added samples once, and there are four such arrays"
