"""Steps from noisier levels, against the samplers themselves compiled for such levels, and on Gaussian data in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from calib.correction.level_shift import LevelShift, check_shift
from calib.correction.step_fit import CorrectionChoice, Variance
from calib.walk.policy import FixedPolicy
from calib.walk.step_result import StepResult
from calib.walk.walk import Walk, WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step, StepShift
from engines.errors import UsageError
from engines.samplers import SAMPLERS, NoiseSchedule, SamplerTable, compile_sampler
from engines.samplers.levels.noise_schedule import PredictionType

SCHEDULE = NoiseSchedule(clip_sample=False)
ALPHA_BAR: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)
SHIFT = LevelShift.of(SCHEDULE)
STEPS = 20
U = 0.03


def _log_snr(alpha_bar: Float64 | float) -> Float64:
    return np.asarray(np.log(alpha_bar / (1 - np.asarray(alpha_bar))))


# One step


def test_a_state_without_excess_takes_the_very_same_step() -> None:
    step = compile_sampler("ddim", STEPS, 0.0, SCHEDULE).step(7)
    assert SHIFT(step, 0.0) is step


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("i", [1, 10, STEPS - 1])
def test_the_step_is_the_samplers_own_from_the_noisier_level(prediction_type: PredictionType, i: int) -> None:
    schedule = SCHEDULE.model_copy(update={"prediction_type": prediction_type})
    step = compile_sampler("ddim", STEPS, 0.0, schedule).step(i)
    noisier = ALPHA_BAR.copy()
    noisier[int(step.timestep)] /= 1 + U
    expected = compile_sampler("ddim", STEPS, 0.0, schedule, noisier).step(i)
    shifted, scale = LevelShift.of(schedule)(step, U), 1 / math.sqrt(1 + U)
    assert (shifted.input_scale, shifted.alpha_bar) == pytest.approx((scale, expected.alpha_bar))
    assert (shifted.x_coeff, shifted.out_coeff) == pytest.approx((scale * expected.x_coeff, expected.out_coeff), rel=1e-10)
    for name in ("prediction_coeffs", "epsilon_coeffs"):
        of_x, of_out = getattr(expected, name)
        assert getattr(shifted, name) == pytest.approx((scale * of_x, of_out), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.5), ("ddim", 1.0), ("ddpm", 1.0)])
def test_clean_sample_and_noise_arrive_in_the_shares_that_the_step_had(sampler: str, eta: float) -> None:
    step = compile_sampler(sampler, STEPS, eta, SCHEDULE).step(12)
    shifted, x0, eps = SHIFT(step, U), 0.7, -1.3
    arrived = []
    for row, a, scale in ((step, step.alpha_bar, 1.0), (shifted, step.alpha_bar / (1 + U), math.sqrt(1 + U))):
        x = scale * (math.sqrt(a) * x0 + math.sqrt(1 - a) * eps)
        arrived.append(row.x_coeff * x + row.out_coeff * eps)
    assert arrived[1] == pytest.approx(arrived[0], rel=1e-10)
    assert shifted.sigma == step.sigma


def test_the_timestep_is_where_the_log_snr_is_that_of_the_level() -> None:
    step = replace(compile_sampler("ddim", STEPS, 0.0, SCHEDULE).step(10), alpha_bar=float(ALPHA_BAR[400]))
    assert SHIFT(step, ALPHA_BAR[400] / ALPHA_BAR[430] - 1).timestep == pytest.approx(430, abs=1e-6)
    between = SHIFT(step, ALPHA_BAR[400] / math.sqrt(ALPHA_BAR[430] * ALPHA_BAR[431]) - 1)
    left, right = _log_snr(ALPHA_BAR[430]), _log_snr(ALPHA_BAR[431])
    assert between.timestep == pytest.approx(430 + (left - _log_snr(between.alpha_bar)) / (left - right), abs=1e-6)
    assert 430.4 < between.timestep < 430.6


def test_beyond_the_noisiest_level_of_the_training_the_last_timestep_is_given() -> None:
    assert SHIFT(compile_sampler("ddim", STEPS, 0.0, SCHEDULE).step(0), 10.0).timestep == 999
    zero_snr = NoiseSchedule(clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    shifted = LevelShift.of(zero_snr)(compile_sampler("ddim", STEPS, 0.0, zero_snr).step(1), U)
    assert 949 < shifted.timestep < 999


# Which chains


@pytest.mark.parametrize(
    ("table", "trajectory", "named"),
    [
        (compile_sampler("ddim", 4, 0.0, NoiseSchedule(clip_sample=True)), "quantized", "clipping"),
        (compile_sampler("dpm++2m", 4, 0.0, SCHEDULE), "quantized", "history"),
        (compile_sampler("plms", 4, 0.0, SCHEDULE), "quantized", "history"),
        (compile_sampler("heun", 4, 0.0, SCHEDULE), "quantized", "history"),
        (compile_sampler("unipc2", 4, 0.0, SCHEDULE), "quantized", "history"),
        (compile_sampler("deis3", 4, 0.0, SCHEDULE), "quantized", "history"),
        (compile_sampler("ddim", 4, 0.0, SCHEDULE), "fp", "trajectory"),
    ],
)
def test_chains_that_cannot_be_shifted_are_refused(table: SamplerTable, trajectory: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check_shift(table, trajectory)


def test_others_are_not() -> None:
    for sampler in ("ddim", "ddpm", "dpm++1", "dpm++1-sde", "euler", "euler-ancestral", "lcm", "tcd"):
        check_shift(compile_sampler(sampler, 4, SAMPLERS[sampler].eta, SCHEDULE), "quantized")


def test_a_flow_has_no_levels_of_betas_to_shift_to() -> None:
    with pytest.raises(UsageError, match=r"(?s)flow.*variance"):
        LevelShift.of(NoiseSchedule(prediction_type="flow"))


@pytest.mark.parametrize("sampler", ["euler", "euler-ancestral"])
def test_in_euler_s_state_the_excess_adds_to_the_level(sampler: str) -> None:
    """`x0 + sigma eps` and noise of variance `u` on top is `x0 + sqrt(sigma^2 + u) eps`."""
    step, u = compile_sampler(sampler, STEPS, SAMPLERS[sampler].eta, SCHEDULE).step(8), 0.4
    shifted, level = SHIFT(step, u), math.sqrt(1 / step.alpha_bar - 1)
    noisier = math.sqrt(level**2 + u)
    goal = level + step.out_coeff  # of a step `x + (goal - level) eps`
    assert (shifted.x_coeff, shifted.out_coeff) == pytest.approx((1, goal - noisier), rel=1e-9)
    assert (shifted.alpha_bar, shifted.input_scale) == pytest.approx((1 / (1 + noisier**2), 1 / math.sqrt(1 + noisier**2)), rel=1e-9)
    assert shifted.prediction_coeffs == pytest.approx((1, -noisier), rel=1e-9)
    assert shifted.sigma == step.sigma


# Chains without sampling error: x0 ~ N(0, S^2), q = eps + sqrt(s2) n with white n.


def _final_variance(S: float, s2: float, shift: LevelShift | None, eta: float = 0.0) -> float:
    """By the arithmetic of this test: the network is exact at the level that it is asked at, so `eps = c (input_scale x)`."""
    table, variance, u = compile_sampler("ddim", STEPS, eta, SCHEDULE), 1.0, 0.0
    for i in range(STEPS):
        row = table.step(i) if shift is None or i == STEPS - 1 else shift(table.step(i), u)
        c = math.sqrt(1 - row.alpha_bar) / (row.alpha_bar * S**2 + 1 - row.alpha_bar) * row.input_scale
        added = row.out_coeff**2 * s2
        u = max(added - row.sigma**2, 0)
        variance = (row.x_coeff + row.out_coeff * c) ** 2 * variance + added + max(row.sigma**2 - added, 0)
    return variance


@pytest.mark.parametrize("S", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("s2", [0.01, 0.04, 0.09])
def test_a_shifted_deterministic_chain_keeps_the_variance_of_full_precision(S: float, s2: float) -> None:
    exact, plain, shifted = _final_variance(S, 0.0, None), _final_variance(S, s2, None), _final_variance(S, s2, SHIFT)
    assert plain / exact - 1 > 0.02
    assert abs(shifted - exact) < 0.25 * (plain - exact)


def test_with_noise_the_noise_absorbs_first_and_the_rest_is_shifted() -> None:
    exact, plain, shifted = (_final_variance(0.5, s2, shift, eta=0.1) for s2, shift in ((0.0, None), (0.09, None), (0.09, SHIFT)))
    assert abs(shifted - exact) < 0.25 * abs(plain - exact)


# The same through the walk and the run time, with real states

SHAPE = (1, 8, 8)
SAMPLES = 256
S, S2 = 0.5, 0.04


def _exact(x: Float32, timestep: float, rows: Int64) -> Float32:
    """`eps` in closed form at any timestep, by interpolation in the log-SNR."""
    del rows
    a = 1 / (1 + math.exp(-float(np.interp(timestep, np.arange(1000), _log_snr(ALPHA_BAR)))))
    return (math.sqrt(1 - a) / (a * S**2 + 1 - a) * x)[None].astype(np.float32)


def _noisy(x: Float32, timestep: float, rows: Int64) -> Float32:
    noise = np.random.default_rng(round(1000 * timestep)).standard_normal((SAMPLES, *SHAPE))[rows]
    return (_exact(x, timestep, rows) + math.sqrt(S2) * noise).astype(np.float32)


def _plan(variance: Variance, network: Denoiser = _noisy, eta: float = 0.0) -> WalkPlan:
    return WalkPlan(
        table=compile_sampler("ddim", STEPS, eta, SCHEDULE),
        reference=_exact,
        quantized={"q": network},
        noise=NoiseSource(3, SHAPE),
        rows=np.arange(SAMPLES, dtype=np.int64),
        policy=FixedPolicy(("q",) * STEPS),
        correction=CorrectionChoice("none", variance),
        batch_size=SAMPLES,
        shift=SHIFT if variance == "shift" else None,
    )


def _take(plan: WalkPlan, folder: Path) -> tuple[list[StepResult], Float32]:
    with Walk(plan, folder) as walk:
        return list(walk), np.array(walk.states)


def _spread(states: Float32) -> float:
    return float(states.astype(np.float64).var())


def test_the_walk_shifts_each_step_by_what_the_one_before_left(tmp_path: Path) -> None:
    plan = _plan("shift")
    results, shifted = _take(plan, tmp_path)
    assert results[0].shifted is results[-1].shifted is None
    for before, result in pairwise(results[:-1]):
        u = before.corrections["q"].unabsorbed_variance
        assert u > 0
        assert result.shifted == SHIFT(plan.table.step(result.step), u)
        assert result.timestep == result.shifted.timestep > plan.table.timestep[result.step]
    exact, plain = _take(_plan("schedule", _exact), tmp_path)[1], _take(_plan("schedule"), tmp_path)[1]
    assert abs(_spread(shifted) - _spread(exact)) < 0.4 * (_spread(plain) - _spread(exact))
    assert _spread(shifted) == pytest.approx(_final_variance(S, S2, SHIFT), rel=5 * math.sqrt(2 / shifted.size))


def test_without_noise_shift_is_the_plain_chain_bit_for_bit(tmp_path: Path) -> None:
    results, shifted = _take(_plan("shift", _exact), tmp_path)
    assert all(result.shifted is None for result in results)
    np.testing.assert_array_equal(shifted, _take(_plan("schedule", _exact), tmp_path)[1])


def _schedule(plan: WalkPlan, results: list[StepResult]) -> Schedule:
    steps = []
    for result in results:
        row, fitted = plan.table.step(result.step), result.corrections["q"]
        correction = Correction(
            gain=(1.0,),
            offset=(0.0,),
            state_gain=(0.0,),
            sigma_corrected=fitted.sigma_corrected,
            residual_variance=0.0,
            unabsorbed_variance=0.0,
        )
        names = ("timestep", "input_scale", "x_coeff", "out_coeff", "prediction_coeffs")
        steps.append(
            Step(
                step=result.step, precision="q", history_coeffs=(), sigma=row.sigma, clip=None, corrections={"q": correction},
                shifted=None if result.shifted is None else StepShift(**{name: getattr(result.shifted, name) for name in names}),
                **{name: getattr(row, name) for name in names},
            )
        )  # fmt: skip
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=0.0, guidance=1.0),
        correction=CorrectionRecord(mode="none", variance="shift"), policy="fixed", init_sigma=1.0, steps=tuple(steps),
    )  # fmt: skip


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_the_run_time_retraces_the_shifted_walk(eta: float, tmp_path: Path) -> None:
    plan = _plan("shift", eta=eta)
    results, final = _take(plan, tmp_path)
    assert sum(result.shifted is not None for result in results) > 2
    chain = Chain(_schedule(plan, results), plan.quantized)
    np.testing.assert_array_equal(chain.sample(NoiseSource(3, SHAPE), plan.rows, plan.rows), final)
    plain = replace(chain, corrected=False).sample(NoiseSource(3, SHAPE), plan.rows, plan.rows)
    if eta == 0:
        np.testing.assert_array_equal(plain, _take(_plan("none"), tmp_path)[1])
    assert np.abs(plain - final).max() > 0.01


def test_a_walk_that_is_to_shift_must_know_how() -> None:
    with pytest.raises(ValueError, match="shift"):
        replace(_plan("schedule"), shift=SHIFT)
    with pytest.raises(ValueError, match="shift"):
        replace(_plan("shift"), shift=None)
