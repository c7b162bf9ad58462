"""The grid of probed steps, and interpolation between them on a chain whose end errors are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from calib.walk.fit import probe_evaluations
from calib.walk.probed_steps import ProbedSteps
from calib.walk.sensitivity import ProbePlan, Probes, probe
from engines.arrays import Float32, Float64, Int64
from engines.chain.noise import NoiseSource
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step

STEPS, SHAPE, SAMPLES = 50, (1, 2, 2), 4
LEVELS = {"low": 1e-2, "middle": 3e-3, "high": 1e-3}
RNG = np.random.default_rng(7)
OUT_COEFFS = -RNG.uniform(0.05, 2.0, STEPS)
PLANTED = RNG.standard_normal(SHAPE)


@dataclass
class Planted:
    """`out = level n` with one pattern n, whatever the state; counts its evaluations of a sample."""

    level: float = 0.0
    rows: list[int] = field(default_factory=list)

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
        self.rows.append(len(rows))
        return np.broadcast_to(np.float32(self.level * PLANTED), x.shape)[None].astype(np.float32)


def growing_by(factor: float) -> Float64:
    """Factors of the state at each step: an error of step i grows by `factor ** (S - 1 - i)` until the end."""
    return np.full(STEPS, factor)


def plan(x_coeffs: Float64, own_known: bool = True) -> ProbePlan:
    def correction(name: str, i: int) -> Correction:
        variance = (LEVELS.get(name, 0.0) * float(PLANTED.std())) ** 2 if own_known else float(name != "fp32") / OUT_COEFFS[i] ** 2
        return Correction(
            gain=(1.0,), offset=(0.0,), state_gain=(0.0,), sigma_corrected=0.0, residual_variance=variance, unabsorbed_variance=0.0
        )

    steps = tuple(
        Step(
            step=i, timestep=float(STEPS - i), precision="fp32", x_coeff=x_coeffs[i], out_coeff=OUT_COEFFS[i], prediction_coeffs=(1.0, 0.0),
            history_coeffs=(), input_scale=1.0, sigma=0.0, clip=None, corrections={name: correction(name, i) for name in (*LEVELS, "fp32")},
        )
        for i in range(STEPS)
    )  # fmt: skip
    record = CorrectionRecord(mode="signed", variance="schedule")
    schedule = Schedule(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=0.0, guidance=1.0),
        correction=record,
        policy="fixed",
        init_sigma=1e-3,
        steps=steps,
    )
    samples = np.arange(SAMPLES, dtype=np.int64)
    networks = {name: Planted(level) for name, level in LEVELS.items()}
    return ProbePlan(schedule, Planted(), networks, NoiseSource(1, SHAPE), samples, samples, batch_size=SAMPLES)


def closed_form(x_coeffs: Float64) -> Float64:
    """[S, P] amplitudes of the end errors."""
    growth = np.cumprod(x_coeffs[::-1])[::-1] / x_coeffs
    amplitudes: Float64 = np.abs(growth * OUT_COEFFS)[:, None] * np.array(list(LEVELS.values())) * np.sqrt(np.square(PLANTED).mean())
    return amplitudes


@pytest.mark.parametrize("steps", [*range(1, 60), 100, 250, 1000])
@pytest.mark.parametrize("precisions", [1, 3])
def test_probes_take_at_most_four_chains_for_each_precision(steps: int, precisions: int) -> None:
    grid = ProbedSteps.of(steps)
    assert probe_evaluations(precisions + 1, steps) <= 4 * precisions * steps
    assert grid.probed == tuple(sorted(set(grid.probed)))
    assert (grid.probed[0], grid.probed[-1]) == (0, steps - 1)
    left = [steps - step for step in grid.probed if step != grid.held_out]
    assert all(fewer >= (more - 1) // 2 for more, fewer in pairwise(left))
    assert (grid.held_out is None) == (len(grid.probed) == steps)


def test_fifty_steps_at_three_precisions_take_a_tenth_of_the_evaluations_of_probing_every_step() -> None:
    probed = plan(growing_by(0.98))
    probe(probed)
    networks = (probed.reference, *probed.quantized.values())
    taken = sum(len(network.rows) for network in networks if isinstance(network, Planted))
    every = STEPS + len(LEVELS) * STEPS * (STEPS + 1) // 2
    assert taken == probe_evaluations(1 + len(LEVELS), STEPS) == 377
    assert taken <= every / 10


@pytest.mark.parametrize("factor", [0.97, 1.0, 1.05])
def test_steady_growth_is_interpolated_exactly(factor: float) -> None:
    """The coefficients of the output jump from step to step: the schedule knows them."""
    coeffs = growing_by(factor)
    found, expected = probe(plan(coeffs)), closed_form(coeffs)
    np.testing.assert_allclose(found.amplitudes, expected, rtol=2e-3)
    assert all(abs(error) < 0.02 for error in found.interpolation_errors().values())
    choice = RNG.choice([*LEVELS, "fp32"], STEPS).tolist()
    amplitudes = [expected[i, list(LEVELS).index(name)] for i, name in enumerate(choice) if name != "fp32"]
    assert found.predict(choice) == pytest.approx(sum(amplitudes) ** 2, rel=5e-3)


def test_the_step_held_out_tells_an_interpolation_that_is_wrong() -> None:
    """Own errors that are the same at every step say nothing about coefficients that jump."""
    coeffs = growing_by(1.0)
    found, expected = probe(plan(coeffs, own_known=False)), closed_form(coeffs)
    held_out = found.grid.held_out
    assert held_out is not None
    others = [step for step in found.grid.probed if step != held_out]
    between = np.exp(PchipInterpolator(others, np.log(expected[others]))(held_out))
    errors = 20 * np.log10(between / expected[held_out])
    np.testing.assert_allclose(list(found.interpolation_errors().values()), errors, rtol=1e-2)
    assert (np.abs(errors) > 1).all()


def test_a_precision_without_any_error_predicts_none() -> None:
    probed = plan(growing_by(0.98))
    found = probe(ProbePlan(probed.schedule, probed.reference, {"high": Planted()}, probed.noise, probed.samples, probed.rows))
    assert found.predict(("high",) * STEPS) == 0.0
    assert found.interpolation_errors() == {"high": 0.0}
    assert not found.amplitudes.any()


def test_interpolated_probes_survive_a_file(tmp_path: Path) -> None:
    found = probe(plan(growing_by(0.98)))
    found.save(tmp_path / "probes.npz")
    loaded = Probes.load(tmp_path / "probes.npz")
    assert loaded.grid == found.grid
    np.testing.assert_array_equal(loaded.amplitudes, found.amplitudes)
