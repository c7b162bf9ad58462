"""Walks of every sampler over Gaussian data with planted quantization noise: corrections bring the chain of full precision back.

With `x0 ~ N(m_c, S^2)` in every pixel, `eps = sqrt(1 - a) (x - sqrt(a) m_c) / (a S^2 + 1 - a)` at unit scale, which is what networks see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from calib.correction.step_fit import CorrectionChoice
from calib.walk.policy import FixedPolicy, Policy, SnrPolicy
from calib.walk.step_result import StepResult
from calib.walk.walk import WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.samplers import SAMPLERS, NoiseSchedule, SamplerTable, compile_sampler
from tests.calib.walk.gaussian_walk import take_with_states

STEPS = 12
SHAPE = (3, 4, 4)
MEAN, S = np.array([0.5, -0.3, 0.0]).reshape(-1, 1, 1), 0.6
K, MU = np.array([-0.15, 0.1, -0.05]).reshape(-1, 1, 1), np.array([0.2, -0.1, 0.05]).reshape(-1, 1, 1)
ALPHA_BAR: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)
OF_BETAS = [name for name, sampler in SAMPLERS.items() if sampler.predictions != ("flow",)]
STOCHASTIC = [name for name in OF_BETAS if SAMPLERS[name].eta > 0]


def _table(name: str) -> SamplerTable:
    return compile_sampler(name, STEPS, SAMPLERS[name].eta, NoiseSchedule(clip_sample=False, timestep_spacing="trailing"))


@dataclass(frozen=True)
class Network:
    """`(1 + k_c) e + mu_c + sqrt(s2) n`; full precision where all of it is 0."""

    planted: bool = False
    s2: float = 0.0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        a = float(ALPHA_BAR[int(timestep)])
        e = math.sqrt(1 - a) / (a * S**2 + 1 - a) * (x - math.sqrt(a) * MEAN)
        q = (1 + K) * e + MU if self.planted else e
        n = np.random.default_rng(round(timestep)).standard_normal((4096, *SHAPE))[rows] if self.s2 else 0.0
        return np.asarray(q + math.sqrt(self.s2) * n, np.float32)[None]


def _walk(
    table: SamplerTable,
    network: Denoiser,
    folder: Path,
    samples: int = 64,
    correction: CorrectionChoice | None = None,
    policy: Policy | None = None,
    reference: Denoiser = Network(),
) -> tuple[list[StepResult], Float64]:
    """Results, and the states after each step [steps, samples, *SHAPE]."""
    plan = WalkPlan(
        table=table, reference=reference, quantized={"q": network, "fp32": reference}, noise=NoiseSource(seed=7, shape=SHAPE),
        rows=np.arange(samples, dtype=np.int64), policy=policy or FixedPolicy(("q",) * table.steps),
        correction=correction or CorrectionChoice("joint"), batch_size=512,
    )  # fmt: skip
    return take_with_states(plan, folder)


PLAIN = CorrectionChoice("none", "none")


@pytest.mark.parametrize("name", OF_BETAS)
def test_what_follows_the_output_and_its_mean_is_undone_whatever_the_sampler(name: str, tmp_path: Path) -> None:
    table = _table(name)
    exact, plain, corrected = (
        _walk(table, network, tmp_path, correction=choice)[1][-1]
        for network, choice in ((Network(), PLAIN), (Network(planted=True), PLAIN), (Network(planted=True), None))
    )
    assert np.abs(plain - exact).max() > 0.2
    assert np.abs(corrected - exact).max() < 2e-3


def _variances(states: Float64) -> Float64:
    """[rows] within channels, after each step."""
    return np.array([x.var(axis=(0, 2, 3)).mean() for x in states])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_fresh_noise_gives_up_what_quantization_added_whatever_the_sampler(name: str, tmp_path: Path) -> None:
    table, noisy = _table(name), Network(s2=0.02)
    exact, plain, corrected = (
        _variances(_walk(table, network, tmp_path, 2048, choice)[1])
        for network, choice in ((Network(), PLAIN), (noisy, PLAIN), (noisy, CorrectionChoice("joint")))
    )
    assert np.all(plain / exact - 1 > 0.025)
    np.testing.assert_allclose(corrected[:-1], exact[:-1], rtol=0.015)
    np.testing.assert_allclose(corrected[-1], exact[-1], rtol=0.02, err_msg="the last step has no noise to give up")


def test_corrections_in_euler_s_state_are_those_of_the_same_chain_at_unit_variance(tmp_path: Path) -> None:
    """Ancestral Euler and the first order of SDE-DPM-Solver++ are one chain: a state is that of the other divided by `sqrt(a)`."""
    network, policy = Network(planted=True, s2=0.02), SnrPolicy(("q", "fp32"))
    tables = {name: _table(name) for name in ("euler-ancestral", "dpm++1-sde")}
    euler, dpm = (_walk(table, network, tmp_path, 256, CorrectionChoice("mmse"), policy)[0] for table in tables.values())
    scale = [*tables["euler-ancestral"].input_scale, 1.0]
    assert [result.chosen for result in euler] == [result.chosen for result in dpm]
    assert {result.chosen for result in euler} == {"q", "fp32"}
    for i, (ours, theirs) in enumerate(zip(euler, dpm, strict=True)):
        one, other = ours.corrections["q"], theirs.corrections["q"]
        np.testing.assert_allclose(one.affine.gain, other.affine.gain, rtol=2e-3)
        np.testing.assert_allclose(one.affine.offset, other.affine.offset, atol=2e-3)
        assert one.sigma_corrected * scale[i + 1] == pytest.approx(other.sigma_corrected, rel=2e-3, abs=1e-9)
        assert one.unabsorbed_variance * scale[i + 1] ** 2 == pytest.approx(other.unabsorbed_variance, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("name", ["plms", "dpm++2m", "euler", "heun"])
def test_a_deterministic_chain_has_no_noise_to_give_up_and_says_so(name: str, tmp_path: Path) -> None:
    results, _ = _walk(_table(name), Network(s2=0.02), tmp_path)
    assert len(results) == SAMPLERS[name].rows(STEPS)
    assert not any(result.corrections["q"].sigma_corrected for result in results)
    assert sum(result.corrections["q"].unabsorbed_variance > 0 for result in results) > STEPS / 2


@dataclass(frozen=True)
class Flow:
    """The velocity of `(1 - s) x0 + s eps` in closed form, and planted noise on it."""

    planted: bool = False

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        del rows
        s = timestep / 1000
        variance = (1 - s) ** 2 * S**2 + s**2
        v = (s - (1 - s) * S**2) / variance * (x - (1 - s) * MEAN) - MEAN
        return np.asarray((1 + K) * v + MU if self.planted else v, np.float32)[None]


def test_a_flow_is_corrected_too(tmp_path: Path) -> None:
    table = compile_sampler("flow-euler", STEPS, 0.0, NoiseSchedule(prediction_type="flow", shift=3.0))
    exact, plain, corrected = (
        _walk(table, Flow(planted), tmp_path, correction=choice, reference=Flow())[1][-1]
        for planted, choice in ((False, PLAIN), (True, PLAIN), (True, None))
    )
    assert np.abs(plain - exact).max() > 0.2
    assert np.abs(corrected - exact).max() < 2e-3
