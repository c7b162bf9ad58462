"""Walks whose steps reuse features: they come from the step that the corrected chain took, and have statistics of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from calib.walk.fitted_schedule import record_of, schedule_of
from calib.walk.policy import Policy, SnrPolicy
from calib.walk.reuse import ReuseSteps
from calib.walk.step_networks import Elsewhere, StepBatch, StepNetworks, StepOutputs
from calib.walk.walk import StepResult, Walk, WalkPlan
from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.sampling import Chain
from engines.chain.schedule import SamplerRecord, Schedule
from tests.calib.walk.gaussian_walk import STEPS, Exact, always, take, walk_plan

CUT, ODD = "skip_1", frozenset(range(1, STEPS, 2))


@dataclass
class Whole:
    """A network whose features are its output: reused, they are the output of the step that kept them."""

    network: Denoiser

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        return self.network(x, timestep, rows)

    def keep(self, x: Float32, timestep: float, rows: Int64) -> tuple[Float32, Float32]:
        out = self.network(x, timestep, rows)
        return out, np.moveaxis(out, 0, 1)

    def reuse(self, x: Float32, timestep: float, rows: Int64, kept: Float32) -> Float32:  # noqa: ARG002 (the protocol's)
        return np.moveaxis(kept, 1, 0)


def reusing(policy: Policy, steps: frozenset[int] = ODD) -> WalkPlan:
    plan, reuse = walk_plan(), ReuseSteps(CUT, steps, ("low", "high"))
    at_cut = {f"{name}+{CUT}": Whole(plan.quantized[name]) for name in ("low", "high")}
    return replace(plan, quantized={**plan.quantized, **at_cut}, reuse=reuse, policy=reuse.policy(policy))


def extrapolating(plan: WalkPlan) -> WalkPlan:
    assert plan.reuse is not None
    reuse = plan.reuse.extrapolating(plan.table.timestep)
    return replace(plan, reuse=reuse)


def schedule(plan: WalkPlan, results: list[StepResult]) -> Schedule:
    sampler = SamplerRecord(name="ddim", steps=STEPS, eta=1.0, guidance=1.0)
    return schedule_of(sampler, record_of("signed", "schedule", ("gain", "offset")), "snr", plan.table, results)


def test_policy_chooses_among_the_networks_at_the_cut_where_features_are_reused(tmp_path: Path) -> None:
    results, _ = take(reusing(SnrPolicy(("low", "high"))), tmp_path)
    assert [result.chosen.endswith(f"+{CUT}") for result in results] == [step in ODD for step in range(STEPS)]
    assert all(set(result.corrections) >= {"low", "high"} for result in results)
    assert {len(results[step].corrections) for step in ODD} == {4}


@pytest.mark.parametrize("steps", [ODD, frozenset({3, 4, 5, 11})])
def test_noise_of_reused_features_is_that_of_the_step_that_the_walk_took(tmp_path: Path, steps: frozenset[int]) -> None:
    plan, visited = reusing(always("high"), steps), list[Float32]()
    results, _ = take(plan, tmp_path, lambda _, states: visited.append(np.array(states)))
    network, exact = plan.quantized["high"], Exact()
    for step in steps:
        kept = max(set(range(step)) - steps)
        old = network(visited[kept], plan.table.timestep[kept], plan.rows)[0]
        d = old - exact(visited[step], plan.table.timestep[step], plan.rows)[0]
        found = results[step].moments[f"high+{CUT}"].guided(1.0)
        np.testing.assert_allclose(found.mean_of("d"), d.mean(axis=(0, 2, 3)), atol=1e-5)
        np.testing.assert_allclose(found.variance("d"), d.var(axis=(0, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize(("batch", "extrapolates"), [(1, False), (7, False), (48, False), (7, True)])
def test_a_sampled_chain_ends_where_the_walk_ended(tmp_path: Path, batch: int, *, extrapolates: bool) -> None:
    plan = reusing(SnrPolicy(("low", "high")))
    if extrapolates:
        plan = extrapolating(plan)
    results, final = take(plan, tmp_path)
    weights = plan.reuse.weights if plan.reuse is not None else {}
    made = schedule(plan, results)
    steps = tuple(step.model_copy(update={"extrapolation": weights.get(step.step)}) for step in made.steps)
    chain = Chain(made.model_copy(update={"steps": steps}), plan.quantized)
    assert chain.schedule.extrapolates == extrapolates
    assert chain.cut == CUT
    sampled = [chain.sample(plan.noise, part, part) for part in np.split(plan.rows, range(batch, len(plan.rows), batch))]
    np.testing.assert_allclose(np.concatenate(sampled), final, atol=2e-4)


def test_features_lie_on_the_line_through_those_of_the_last_two_whole_steps(tmp_path: Path) -> None:
    """Steps 1 and 2 have only one before them; the second of two whole steps in a row counts too."""
    steps = frozenset({1, 2, 4, 7})
    plan, visited = extrapolating(reusing(always("high"), steps)), list[Float32]()
    assert plan.reuse is not None
    t = plan.table.timestep
    assert plan.reuse.weights == {
        step: pytest.approx((t[last] - t[step]) / (t[earlier] - t[last])) for step, earlier, last in ((4, 0, 3), (7, 5, 6))
    }
    results, _ = take(plan, tmp_path, lambda _, states: visited.append(np.array(states)))
    network, exact = plan.quantized["high"], Exact()
    outputs = [network(visited[i], plan.table.timestep[i], plan.rows)[0] for i in range(8)]
    for step, earlier, last in ((1, 0, 0), (4, 0, 3), (7, 5, 6)):
        q = outputs[last] + plan.reuse.weights.get(step, 0) * (outputs[last] - outputs[earlier])
        d = q - exact(visited[step], plan.table.timestep[step], plan.rows)[0]
        found = results[step].moments[f"high+{CUT}"].guided(1.0)
        np.testing.assert_allclose(found.mean_of("d"), d.mean(axis=(0, 2, 3)), atol=1e-5)
        np.testing.assert_allclose(found.variance("d"), d.var(axis=(0, 2, 3)), rtol=1e-3)


def test_timestep_that_is_visited_twice_gives_no_line() -> None:
    assert {*ReuseSteps(CUT, frozenset({2, 4}), ("w8a8",)).extrapolating([9, 9, 7, 5, 3]).weights} == {4}


def test_walk_that_is_evaluated_elsewhere_is_the_same(tmp_path: Path) -> None:
    """Batches that come back in another order, from networks that the walk does not have itself."""
    plan = reusing(SnrPolicy(("low", "high")))
    networks = StepNetworks(plan.reference, plan.quantized, plan.guidance)

    def evaluator(count: int, batch: Callable[[int], StepBatch]) -> Iterator[tuple[int, StepOutputs]]:
        return ((index, networks(batch(index))) for index in reversed(range(count)))

    away = replace(plan, quantized={name: Elsewhere(name) for name in plan.quantized}, evaluator=evaluator)
    (here, final), (there, same) = take(plan, tmp_path / "here"), take(away, tmp_path / "there")
    assert [result.chosen for result in there] == [result.chosen for result in here]
    np.testing.assert_array_equal(same, final)


def test_features_are_kept_in_a_file_only_where_they_are_reused(tmp_path: Path) -> None:
    files = set[str]()
    with Walk(reusing(always("high"), frozenset({STEPS - 1})), tmp_path) as walk:
        for result in walk:
            names = {path.name for path in tmp_path.rglob("*")}
            assert ("features" in names) == (result.step == STEPS - 1)
            files |= names
    assert "features" in files
    assert not list(tmp_path.iterdir())


def test_correction_of_reused_features_takes_out_more_noise_than_none(tmp_path: Path) -> None:
    """The old output is a scaled output of a noisier level, which a gain and an offset mend."""
    results, _ = take(reusing(always("high")), tmp_path)
    for step in sorted(ODD)[:-2]:
        name = f"high+{CUT}"
        d = results[step].moments[name].guided(1.0)
        whole = float(np.mean(d.variance("d") + d.mean_of("d") ** 2))
        assert results[step].corrections[name].residual_variance < whole
