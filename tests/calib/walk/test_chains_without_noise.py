"""Chains that draw no fresh noise, over Gaussian data with planted white noise: the end variance is right with "drift", and wrong without.

With `x0 ~ N(m_c, S^2)` in every pixel, `eps = sqrt(1 - a) (x - sqrt(a) m_c) / (a S^2 + 1 - a)` at unit scale, and a flow's velocity is
`(s - (1 - s) S^2) / ((1 - s)^2 S^2 + s^2) (x - (1 - s) m_c) - m_c`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from calib.correction.correction_fit import BOTH_PARTS, Mode, Part
from calib.correction.step_fit import CorrectionChoice, Variance
from calib.walk.fitted_schedule import record_of, schedule_of
from calib.walk.policy import FixedPolicy
from calib.walk.step_result import StepResult
from calib.walk.walk import Walk, WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import SamplerRecord
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from tests.calib.walk.gaussian_walk import take_with_states

STEPS, SAMPLES, SHAPE = 12, 1024, (3, 4, 4)
MEAN, S = np.array([0.5, -0.3, 0.0]).reshape(-1, 1, 1), 0.6
S2 = {"flow-euler": 0.09, "ddim": 0.04, "euler": 0.04, "heun": 0.04, "dpm++2m": 0.04}
"""Variance of the planted noise; a flow's short last steps hardly notice it."""
ALPHA_BAR: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)
SAMPLING_ERROR = 5 * math.sqrt(2 / (SAMPLES * math.prod(SHAPE)))
"""Five standard errors of a variance; 3 %. Both chains start from the same noise, so their ratio is much more certain."""
TOLERANCE = {"flow-euler": 1e-4, "ddim": 1e-4, "euler": 1e-4, "heun": 2e-3, "dpm++2m": SAMPLING_ERROR}
"""First-order chains keep the variance of full precision exactly; see the docstring of the test for the others."""


@dataclass(frozen=True)
class Noisy:
    """The exact network with white noise of variance `s2` on its output."""

    flow: bool
    s2: float = 0.0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        e = _velocity(x, timestep / 1000) if self.flow else _epsilon(x, float(ALPHA_BAR[int(timestep)]))
        n = np.random.default_rng(round(timestep)).standard_normal((SAMPLES, *SHAPE))[rows] if self.s2 else 0.0
        return np.asarray(e + math.sqrt(self.s2) * n, np.float32)[None]


def _epsilon(x: Float32, a: float) -> Float64:
    return np.asarray(math.sqrt(1 - a) / (a * S**2 + 1 - a) * (x - math.sqrt(a) * MEAN))


def _velocity(x: Float32, s: float) -> Float64:
    return np.asarray((s - (1 - s) * S**2) / ((1 - s) ** 2 * S**2 + s**2) * (x - (1 - s) * MEAN) - MEAN)


def _table(name: str) -> SamplerTable:
    if name == "flow-euler":
        return compile_sampler(name, STEPS, 0.0, NoiseSchedule(prediction_type="flow", shift=3.0))
    return compile_sampler(name, STEPS, 0.0, NoiseSchedule(clip_sample=False, timestep_spacing="trailing"))


def _walk(name: str, network: Denoiser, reference: Denoiser, choice: CorrectionChoice, folder: Path) -> tuple[list[StepResult], Float64]:
    """Results, and the states after each step [steps, SAMPLES, *SHAPE]."""
    table = _table(name)
    plan = WalkPlan(
        table=table, reference=reference, quantized={"q": network}, noise=NoiseSource(seed=7, shape=SHAPE),
        rows=np.arange(SAMPLES, dtype=np.int64), policy=FixedPolicy(("q",) * table.steps), correction=choice, batch_size=512,
    )  # fmt: skip
    return take_with_states(plan, folder)


def _ratios(name: str, variance: Variance, folder: Path, mode: Mode = "none") -> tuple[list[StepResult], Float64]:
    """Results, and the variance within channels after each step, relative to full precision's [steps]."""
    exact, noisy = Noisy(name == "flow-euler"), Noisy(name == "flow-euler", S2[name])
    results, states = _walk(name, noisy, exact, CorrectionChoice(mode, variance), folder)
    _, reference = _walk(name, exact, exact, CorrectionChoice("none", "none"), folder)
    found, expected = (chain.var(axis=(1, 3, 4)).mean(axis=1) for chain in (states, reference))
    return results, found / expected


@pytest.mark.parametrize("name", TOLERANCE)
def test_the_variance_is_full_precision_s_with_drift_and_not_without(name: str, tmp_path: Path) -> None:
    """A step with a history is matched to the one that full precision would take from the same earlier states. Quantization noise in those
    states is not in the exact predictions from them, so the states and the history vary together a little less than in the exact chain.
    """
    _, without = _ratios(name, "schedule", tmp_path)
    results, drifted = _ratios(name, "drift", tmp_path)
    assert without[-1] > 1.04
    assert np.abs(drifted - 1).max() < TOLERANCE[name]
    assert abs(drifted[-1] - 1) < (without[-1] - 1) / 8
    assert max(result.corrections["q"].unabsorbed_variance for result in results) < 1e-9


@pytest.mark.parametrize("name", ["flow-euler", "ddim", "dpm++2m"])
def test_the_schedule_gives_other_samples_the_right_variance_too(name: str, tmp_path: Path) -> None:
    exact, noisy = Noisy(name == "flow-euler"), Noisy(name == "flow-euler", S2[name])
    choice, record = CorrectionChoice("none", "drift"), SamplerRecord(name=name, steps=STEPS, eta=0.0, guidance=1.0)
    samples = np.arange(SAMPLES)
    results, _ = _walk(name, noisy, exact, choice, tmp_path)
    schedule = schedule_of(record, record_of(choice.mode, choice.variance, choice.parts), "fixed", _table(name), results)
    variances = []
    for network, corrected in ((exact, False), (noisy, False), (noisy, True)):
        chain = Chain(schedule, {"q": network}, corrected=corrected)
        variances.append(chain.sample(NoiseSource(seed=8, shape=SHAPE), samples, samples).astype(np.float64).var(axis=(0, 2, 3)).mean())
    assert variances[1] > 1.04 * variances[0]
    assert variances[2] == pytest.approx(variances[0], rel=SAMPLING_ERROR / 2)


def test_what_the_schedule_reports_as_unabsorbed_is_what_remains(tmp_path: Path) -> None:
    results, ratios = _ratios("ddim", "q-drift", tmp_path)
    assert ratios[-1] > 1.02
    assert min(result.corrections["q"].unabsorbed_variance for result in results[2:-1]) > 1e-5


@pytest.mark.parametrize("mode", ["signed", "joint", "mmse"])
def test_drift_adds_to_every_mode(mode: Mode, tmp_path: Path) -> None:
    assert np.abs(_ratios("ddim", "drift", tmp_path, mode)[1] - 1).max() < 1e-4


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "flow-euler"])
def test_q_drift_leaves_more_than_drift(name: str, tmp_path: Path) -> None:
    """In first order of the noise it takes too little; and with a history too much, for it takes the uses of one error for independent."""
    end = {variance: _ratios(name, variance, tmp_path)[1][-1] for variance in ("drift", "q-drift")}
    assert abs(end["q-drift"] - 1) > 2 * abs(end["drift"] - 1)
    assert (end["q-drift"] < 1) == (name == "dpm++2m")


CHAIN: frozenset[Part] = frozenset(("gain", "offset", "chain"))


@pytest.mark.parametrize("name", TOLERANCE)
def test_with_the_full_precision_chain_beside_it_a_walk_keeps_mean_and_variance_of_every_channel(name: str, tmp_path: Path) -> None:
    exact, noisy = Noisy(name == "flow-euler"), Noisy(name == "flow-euler", S2[name])
    _, reference = _walk(name, exact, exact, CorrectionChoice("none", "none"), tmp_path)
    _, states = _walk(name, noisy, exact, CorrectionChoice("none", "none", CHAIN), tmp_path)
    spread = reference.std(axis=(1, 3, 4))
    np.testing.assert_allclose(states.std(axis=(1, 3, 4)), spread, rtol=1e-4)
    assert (np.abs(states.mean(axis=(1, 3, 4)) - reference.mean(axis=(1, 3, 4))) / spread).max() < 1e-4


@dataclass(frozen=True)
class Attenuated:
    """The exact network with its output attenuated and shifted."""

    exact: Noisy

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        return np.asarray(0.9 * self.exact(x, timestep, rows) + 0.1, np.float32)


@pytest.mark.parametrize("name", ["flow-euler", "ddim", "euler"])
def test_an_accumulated_affine_error_is_undone_sample_by_sample(name: str, tmp_path: Path) -> None:
    exact = Noisy(name == "flow-euler")
    ends = [
        _walk(name, network, exact, CorrectionChoice("none", "none", parts), tmp_path)[1][-1]
        for network, parts in ((exact, BOTH_PARTS), (Attenuated(exact), BOTH_PARTS), (Attenuated(exact), CHAIN))
    ]
    assert np.abs(ends[1] - ends[0]).max() > 0.1
    assert np.abs(ends[2] - ends[0]).max() < 1e-3


def test_the_accumulated_error_belongs_to_the_precision_that_takes_the_step(tmp_path: Path) -> None:
    table, exact = _table("ddim"), Noisy(flow=False)
    taken = ("q", "fp32") * (STEPS // 2)
    found = []
    for parts in (BOTH_PARTS, CHAIN):
        plan = WalkPlan(
            table=table, reference=exact, quantized={"fp32": exact, "q": Attenuated(exact), "other": Noisy(flow=False, s2=0.04)},
            noise=NoiseSource(seed=7, shape=SHAPE), rows=np.arange(64, dtype=np.int64), policy=FixedPolicy(taken),
            correction=CorrectionChoice("none", "none", parts),
        )  # fmt: skip
        with Walk(plan, tmp_path) as walk:
            found.append([*walk])
    identity = np.ones(3)
    for result in found[1]:
        gains = {name: fitted.affine.gain for name, fitted in result.corrections.items()}
        assert np.array_equal(gains["fp32"], identity)
        assert np.array_equal(gains["other"], identity)
        assert np.array_equal(gains["q"], identity) == (result.chosen != "q")
    assert all(np.array_equal(result.corrections["q"].affine.gain, identity) for result in found[0])
