"""Probes on chains whose end errors are known in closed form, and on chains that are walked in full instead.

Where the network is linear, `out = c_i x`, what is added to the state after step i reaches the end times `prod_{j > i} (A_j + B_j c_j)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from calib.walk.chain_error import ChainErrors, with_precisions
from calib.walk.sensitivity import ProbePlan, Probes, pooled, probe
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step

STEPS, SHAPE, SAMPLES = 5, (2, 3, 4), 6
A = np.array([1.02, 1.05, 1.1, 1.2, 1.3])
B = np.array([-0.1, -0.2, -0.3, -0.4, -0.6])
SLOPE = np.array([0.9, 0.8, 0.7, 0.5, 0.3])
SIGMA = np.array([0.3, 0.25, 0.2, 0.1, 0.0])
LEVELS = {"coarse": 0.2, "fine": 0.05}
REMOVED = {"coarse": 0.5, "fine": 0.9, "fp32": 1.0}
"""Share of the noise that the calibration leaves."""


@dataclass(frozen=True)
class Linear:
    """`out = c_i x + level n`, with `n` a table by step and row: it does not depend on the state."""

    level: float = 0.0
    seed: int = 0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        i = int(timestep)
        out: Float64 = SLOPE[i] * x + self.level * planted(i, self.seed)[rows]
        return out[None].astype(np.float32)


@cache
def planted(step: int, seed: int) -> Float64:
    return np.random.default_rng([step, seed]).standard_normal((256, *SHAPE))


@dataclass(frozen=True)
class Curved:
    """Two branches of a network whose Jacobian depends on the state; `levels` rounds what it sees."""

    levels: float | None = None

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        seen = x if self.levels is None else np.round(self.levels * x) / self.levels
        shift = 0.1 * (rows % 3 + timestep).reshape(-1, 1, 1, 1)
        return np.stack([np.tanh(seen + shift), np.sin(seen)]).astype(np.float32)


NETWORKS: dict[str, Denoiser] = {"coarse": Linear(LEVELS["coarse"], 0), "fine": Linear(LEVELS["fine"], 1), "fp32": Linear()}


def schedule(guidance: float = 1.0, history: tuple[float, ...] = (), clip: float | None = None, offset: float = 0.0) -> Schedule:
    """Corrections are those of nobody: noise is taken away, and `offset` is added at the quantized precisions."""
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=1.0, guidance=guidance),
        correction=CorrectionRecord(mode="signed", variance="schedule"),
        policy="fixed",
        init_sigma=1.5,
        steps=tuple(_step(i, history, clip, offset) for i in range(STEPS)),
    )


def _step(i: int, history: tuple[float, ...], clip: float | None, offset: float) -> Step:
    corrections = {
        name: Correction(
            gain=(1.0, 1.0), offset=(0.0 if name == "fp32" else offset,) * 2, state_gain=(0.0, 0.0),
            sigma_corrected=kept * SIGMA[i], residual_variance=0.0,
            unabsorbed_variance=0.0,
        )
        for name, kept in REMOVED.items()
    }  # fmt: skip
    return Step(
        step=i, timestep=float(i), precision="fp32", x_coeff=A[i], out_coeff=B[i], prediction_coeffs=(0.9, -0.2), history_coeffs=history,
        input_scale=0.5 if history else 1.0, sigma=SIGMA[i], clip=clip, corrections=corrections,
    )  # fmt: skip


def plan(**changes: object) -> ProbePlan:
    quantized = {name: NETWORKS[name] for name in LEVELS}
    samples = np.arange(3, 3 + SAMPLES, dtype=np.int64)
    made = ProbePlan(schedule(), NETWORKS["fp32"], quantized, NoiseSource(1, SHAPE), samples, samples, batch_size=4)
    return replace(made, **changes)  # type: ignore[arg-type]  # callers name fields


def closed_form(offset: float) -> Float64:
    """[N, S, P, values] end errors of the linear network, in float64."""
    samples = np.arange(3, 3 + SAMPLES, dtype=np.int64)
    J = np.append(np.cumprod((A + B * SLOPE)[::-1])[::-1][1:], 1.0)
    errors = np.empty((SAMPLES, STEPS, len(LEVELS), *SHAPE))
    for i in range(STEPS):
        z = NoiseSource(1, SHAPE).step(i, samples).astype(np.float64)
        for p, (name, level) in enumerate(LEVELS.items()):
            errors[:, i, p] = J[i] * (B[i] * (level * planted(i, p)[samples] + offset) + (REMOVED[name] - 1) * SIGMA[i] * z)
    return errors.reshape(SAMPLES, STEPS, len(LEVELS), -1)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_a_linear_network_gives_the_closed_form(offset: float) -> None:
    found, errors = probe(plan(schedule=schedule(offset=offset))), closed_form(offset)
    assert found.precisions == tuple(LEVELS)
    np.testing.assert_allclose(found.products, np.einsum("nipv,njqv->nipjq", errors, errors) / errors.shape[-1], rtol=1e-3, atol=2e-6)
    amplitudes = np.exp(np.log(np.square(errors).mean(axis=-1)).mean(axis=0) / 2)
    np.testing.assert_allclose(found.amplitudes, amplitudes, rtol=1e-4)


@pytest.mark.parametrize(("history", "clip"), [((), None), ((0.3, -0.1), None), ((0.2,), 0.8)])
def test_a_probe_is_a_chain_with_one_quantized_step(history: tuple[float, ...], clip: float | None) -> None:
    networks: dict[str, Denoiser] = {"coarse": Curved(2.0), "fine": Curved(20.0), "fp32": Curved()}
    made = schedule(guidance=1.5, history=history, clip=clip, offset=0.05)
    quantized = {name: networks[name] for name in LEVELS}
    probed = plan(schedule=made, reference=networks["fp32"], quantized=quantized)
    found = probe(probed)

    def sample(choice: tuple[str, ...]) -> Float64:
        out = Chain(with_precisions(made, choice), networks).sample(NoiseSource(1, SHAPE), probed.samples, probed.rows)
        return out.astype(np.float64).reshape(SAMPLES, -1)

    exact = ("fp32",) * STEPS
    one = {(i, name): (*exact[:i], name, *exact[i + 1 :]) for i in range(STEPS) for name in LEVELS}
    errors = np.stack([sample(choice) - sample(exact) for choice in one.values()], axis=1)
    expected = (errors @ errors.transpose(0, 2, 1) / errors.shape[-1]).reshape(found.products.shape)
    np.testing.assert_allclose(found.products, expected, rtol=1e-3, atol=1e-7)
    assert (found.amplitudes > 1e-3).all()


def _errors(samples: Int64) -> ChainErrors:
    rows = np.arange(256, dtype=np.int64)
    exact = with_precisions(schedule(), ("fp32",) * STEPS)
    return ChainErrors(exact, NETWORKS, NoiseSource(1, SHAPE), rows, samples, batch_size=32)


CHAINS = {
    "coarse": ("coarse",) * STEPS,
    "mixed": ("coarse", "fine", "fp32", "coarse", "fine"),
    "late": ("fp32", "fp32", "fp32", "fp32", "fine"),
}


def _chain(name: str) -> Schedule:
    return with_precisions(schedule(), CHAINS[name])


@pytest.mark.parametrize("name", CHAINS)
def test_the_error_of_a_linear_chain_is_predicted_exactly(name: str) -> None:
    """Of the very samples that were probed: errors add, first order is all there is."""
    probed = plan()
    assert probe(probed).predict(CHAINS[name]) == pytest.approx(float(pooled(_errors(probed.samples).measure(_chain(name)))), rel=1e-3)


@pytest.mark.parametrize("name", CHAINS)
def test_the_error_of_other_samples_is_predicted_within_sampling_error(name: str) -> None:
    seen, unseen = np.arange(64, dtype=np.int64), np.arange(64, 256, dtype=np.int64)
    predicted = probe(plan(samples=seen, rows=seen, batch_size=64)).predict(CHAINS[name])
    measured = np.log(_errors(unseen).measure(_chain(name)))
    standard_error = float(measured.std()) * np.sqrt(1 / len(seen) + 1 / len(unseen))
    assert abs(np.log(predicted) - measured.mean()) < 4 * standard_error
    assert standard_error < 0.1


def test_full_precision_is_predicted_to_be_exact() -> None:
    assert probe(plan()).predict(("fp32",) * STEPS) == 0.0


def test_batches_do_not_matter() -> None:
    whole, parts = probe(plan(batch_size=SAMPLES)), probe(plan(batch_size=4))
    np.testing.assert_array_equal(whole.products, parts.products)


def test_deterministic_chains_draw_no_noise() -> None:
    class Start(NoiseSource):
        def step(self, step: int, samples: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
            raise AssertionError("no step has noise")

    quiet = schedule()
    steps = tuple(
        step.model_copy(update={"sigma": 0.0, "corrections": {name: _quiet(c) for name, c in step.corrections.items()}})
        for step in quiet.steps
    )
    found = probe(plan(schedule=quiet.model_copy(update={"steps": steps}), noise=Start(1, SHAPE)))
    assert (found.amplitudes > 0).all()


def _quiet(correction: Correction) -> Correction:
    return correction.model_copy(update={"sigma_corrected": 0.0})


def test_probes_survive_a_file(tmp_path: Path) -> None:
    found = probe(plan())
    found.save(tmp_path / "probes.npz")
    loaded = Probes.load(tmp_path / "probes.npz")
    assert loaded.precisions == found.precisions
    np.testing.assert_array_equal(loaded.products, found.products)


@pytest.mark.parametrize(("errors", "expected"), [([1.0, 100.0], 10.0), ([1e-4, 1e-4, 1e2], 1e-2), ([0.0, 5.0], 0.0), ([0.0, 0.0], 0.0)])
def test_errors_are_pooled_as_their_decibels_are(errors: list[float], expected: float) -> None:
    assert float(pooled(np.array(errors))) == pytest.approx(expected)
