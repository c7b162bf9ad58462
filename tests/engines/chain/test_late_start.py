"""A chain that starts in its middle: the rule of its first step, its levels, and its order after the start."""

from __future__ import annotations

import numpy as np
import pytest

from engines.chain.late_start import LateStart, first_step
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.chain.step import ChainState, Move, advance
from engines.errors import BundleError, UsageError
from engines.samplers import SAMPLERS, NoiseSchedule
from engines.samplers.levels.alphas import alpha_bar

BETAS = NoiseSchedule(clip_sample=False)
FLOW = NoiseSchedule(prediction_type="flow", clip_sample=False, shift=3.0)
NONE = Correction(gain=(1.0,), offset=(0.0,), state_gain=(0.0,), sigma_corrected=0.0, residual_variance=0.0, unabsorbed_variance=0.0)


def _schedule(name: str, steps: int, noise_schedule: NoiseSchedule = BETAS) -> Schedule:
    sampler = SamplerRecord(name=name, steps=steps, eta=SAMPLERS[name].eta, guidance=1.0)
    table = sampler.table(noise_schedule)
    rows = [table.step(i) for i in range(table.steps)]
    return Schedule(
        sampler=sampler, correction=CorrectionRecord(mode="none", variance="none"), policy="fixed", init_sigma=table.init_sigma,
        steps=tuple(
            Step(
                step=i, timestep=row.timestep, precision="fp32", x_coeff=row.x_coeff, out_coeff=row.out_coeff, sigma=row.sigma,
                prediction_coeffs=row.prediction_coeffs, history_coeffs=row.history_coeffs, input_scale=row.input_scale, clip=row.clip,
                corrections={"fp32": NONE},
            )
            for i, row in enumerate(rows)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "strength", "first"),
    [(50, 0.8, 10), (50, 0.75, 13), (10, 0.55, 5), (4, 1.0, 0), (4, 0.25, 3), (50, 0.58, 50 - int(50 * 0.58))],
)
def test_first_step_is_that_of_diffusers(steps: int, strength: float, first: int) -> None:
    assert first_step(steps, strength) == first


@pytest.mark.parametrize(
    ("strength", "message"),
    [(0.0, "out of range"), (1.01, "out of range"), (-1, "out of range"), (0.19, r"(?s)leaves no step.*0\.2 or more")],
)
def test_strengths_without_a_chain_are_refused(strength: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        first_step(5, strength)


def test_levels_of_a_variance_preserving_chain_are_those_of_its_timesteps() -> None:
    late = LateStart.of(_schedule("ddim", 10), BETAS, 0.3)
    a = alpha_bar(BETAS)[[200, 100, 0]]
    np.testing.assert_allclose(late.levels, [*zip(np.sqrt(a), np.sqrt(1 - a), strict=True), (1, 0)], rtol=1e-12)
    assert [step.step for step in late.schedule.steps] == [0, 1, 2]
    assert [step.timestep for step in late.schedule.steps] == [200, 100, 0]


def test_levels_of_euler_add_noise_to_the_whole_sample() -> None:
    late = LateStart.of(_schedule("euler", 10), BETAS, 0.2)
    a = alpha_bar(BETAS)[[100, 0]]
    np.testing.assert_allclose(late.levels, [*((1, sigma) for sigma in np.sqrt((1 - a) / a)), (1, 0)], rtol=1e-12)


def test_levels_of_a_flow_mix_sample_and_noise() -> None:
    late = LateStart.of(_schedule("flow-euler", 4, FLOW), FLOW, 0.5)
    sigmas = np.array([step.timestep for step in late.schedule.steps]) / 1000
    np.testing.assert_allclose(late.levels, [*zip(1 - sigmas, sigmas, strict=True), (1, 0)], rtol=1e-12)


@pytest.mark.parametrize(
    "name", [name for name, sampler in SAMPLERS.items() if sampler.row_of is not None and name not in ("flow-euler", "scm", "consistency")]
)
def test_a_late_chain_ends_at_the_sample_that_an_exact_network_knows(name: str) -> None:
    """With `x0` a point, the exact network is known, every step is exact at any order, and so is the end, whatever the start."""
    schedule = _schedule(name, 8)
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 1, 4)).astype(np.float32), rng.normal(size=(2, 1, 4)).astype(np.float32)
    late = LateStart.of(schedule, BETAS, 0.5)
    table = schedule.sampler.table(BETAS)
    begin = table.steps - len(late.schedule.steps)
    assert begin > 0
    alpha, sigma = late.levels[0]
    state = ChainState((alpha * x0 + sigma * eps).astype(np.float32))
    for i, step in enumerate(late.schedule.steps):
        a, scale = table.alpha_bar[begin + i], table.state_scale[begin + i]
        out = (scale * state.x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        move = Move.plain(step, "fp32", 1.0)
        state = advance(state, out[None].astype(np.float32), move, np.zeros_like(x0) if move.sigma > 0 else None)
        expected = late.levels[i + 1]
        if SAMPLERS[name].eta == 0 and i < len(late.schedule.steps) - 1:
            np.testing.assert_allclose(state.x, expected[0] * x0 + expected[1] * eps, atol=2e-3)
    np.testing.assert_allclose(state.x, x0, atol=0.05)


@pytest.mark.parametrize("name", ["dpm++2m", "unipc2", "unipc3", "deis2", "deis3"])
def test_a_late_chain_looks_back_on_no_step_before_its_first(name: str) -> None:
    whole, late = _schedule(name, 20), LateStart.of(_schedule(name, 20), BETAS, 0.5).schedule
    for i, step in enumerate(late.steps):
        assert not any(step.history_coeffs[i + 1 :])
    assert any(whole.steps[10].history_coeffs[1:])
    assert late.steps[-2].history_coeffs == whole.steps[-2].history_coeffs


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "heun", "lcm"])
def test_steps_without_history_stay_as_they_are(name: str) -> None:
    whole, late = _schedule(name, 8), LateStart.of(_schedule(name, 8), BETAS, 0.5).schedule
    kept = whole.steps[-len(late.steps) :]
    assert [step.model_copy(update={"step": 0}) for step in late.steps] == [step.model_copy(update={"step": 0}) for step in kept]
    assert late.steps[0].timestep == whole.steps[8 if name == "heun" else 4].timestep


def test_plms_starts_at_its_first_step_alone() -> None:
    schedule = _schedule("plms", 8)
    assert len(LateStart.of(schedule, BETAS, 1.0).schedule.steps) == 9
    with pytest.raises(UsageError, match=r"(?s)plms cannot start in the middle.*dpm\+\+2m"):
        LateStart.of(schedule, BETAS, 0.5)


def test_a_schedule_of_another_noise_schedule_is_refused() -> None:
    with pytest.raises(BundleError, match=r"(?s)other steps than its sampler.*timesteps 900 to 0.*timesteps 999 to 99"):
        LateStart.of(_schedule("ddim", 10), NoiseSchedule(clip_sample=False, timestep_spacing="trailing"), 0.5)


def test_the_first_step_reuses_nothing_and_is_not_shifted() -> None:
    schedule = _schedule("ddim", 4)
    reusing = [
        step.model_copy(update={"reuse": "mid" if i % 2 else None, "corrections": {"fp32": NONE, "fp32+mid": NONE}, "mixed": NONE})
        for i, step in enumerate(schedule.steps)
    ]
    late = LateStart.of(schedule.model_copy(update={"steps": tuple(reusing)}), BETAS, 0.75).schedule
    assert [(step.reuse, step.mixed) for step in late.steps] == [(None, None), (None, NONE), ("mid", NONE)]
    Schedule.model_validate(late.model_dump())


def test_features_are_extrapolated_through_the_steps_that_the_late_chain_has_computed() -> None:
    """Of whole steps 0, 3, 6 and 9, a start at row 4 leaves 6 and 9, with 4 before them. Timesteps are evenly spaced."""
    schedule = _schedule("ddim", 12)
    reusing = [
        step.model_copy(
            update={"corrections": {"fp32": NONE, "fp32+mid": NONE}}
            | ({"reuse": "mid", "extrapolation": i % 3 / 3 if i > 3 else None} if i % 3 else {})
        )
        for i, step in enumerate(schedule.steps)
    ]
    late = LateStart.of(schedule.model_copy(update={"steps": tuple(reusing)}), BETAS, 8.5 / 12).schedule
    assert [step.reuse for step in late.steps] == [None, "mid", None, "mid", "mid", None, "mid", "mid"]
    assert [step.extrapolation for step in late.steps] == [None, None, None, 1 / 2, 1.0, None, 1 / 3, 2 / 3]
    Schedule.model_validate(late.model_dump())
