"""The error of features by their age, on Gaussian data, and what it does to the end sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calib.correction.step_fit import CorrectionChoice
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.fitted_schedule import uncorrected_schedule
from calib.walk.reuse_errors import MOST_AGE, AgedFeatures, ReusePlan, aged_features, end_amplitudes, reuse_evaluations
from calib.walk.sensitivity import Probes
from engines.arrays import Float32
from engines.chain.schedule import SamplerRecord
from engines.chain.update import update
from engines.errors import UsageError
from tests.calib.walk.gaussian_walk import SHAPE, STEPS, Exact, ddim
from tests.calib.walk.test_reuse import Whole


@pytest.fixture
def plan() -> ReusePlan:
    """A network whose features are its output, without correction."""
    samples = CalibrationSamples.draw(7, SHAPE, None, 16)
    return ReusePlan(ddim(), Exact(), {"fp32+cut": Whole(Exact())}, CorrectionChoice("none"), 1.0, samples)


def test_error_is_that_of_the_output_of_an_earlier_step(plan: ReusePlan) -> None:
    asked = list[None]()
    found = aged_features(plan, lambda: asked.append(None)).errors
    assert found.shape == (STEPS, MOST_AGE, 1)
    assert len(asked) == reuse_evaluations(1, STEPS)
    x, exact, outputs = plan.samples.noise.start(plan.samples.numbers), Exact(), list[Float32]()
    for i in range(STEPS):
        step = plan.table.step(i)
        outputs.append(exact(x, step.timestep, plan.samples.rows)[0])
        for age in range(1, MOST_AGE + 1):
            expected = 0.0 if age > i else abs(step.out_coeff) * np.sqrt(np.mean((outputs[i - age] - outputs[i]) ** 2))
            assert found[i, age - 1, 0] == pytest.approx(expected, rel=1e-4)
        x, _ = update(x, outputs[i], step, [])
        x = x + np.float32(step.sigma) * plan.samples.noise.step(i, plan.samples.numbers) if step.sigma else x


def test_chain_takes_the_corrections_of_its_features_age(plan: ReusePlan, tmp_path: Path) -> None:
    """A correction by the mean alone is the mean difference between the outputs."""
    fitted = aged_features(replace(plan, correction=CorrectionChoice("joint", parts=frozenset({"offset"}))))
    fitted.save(tmp_path / "aging.npz")
    aged, table = AgedFeatures.load(tmp_path / "aging.npz"), plan.table
    whole = uncorrected_schedule(SamplerRecord(name="ddim", steps=STEPS, eta=1.0, guidance=1.0), table, "fp32")
    chain = aged.chain(whole, ["fp32+cut"], ("fp32", "fp32+cut", "fp32+cut", *("fp32",) * (STEPS - 3)))
    assert [step.reuse for step in chain.steps] == [None, "cut", "cut", *(None,) * (STEPS - 3)]
    x, outputs = plan.samples.noise.start(plan.samples.numbers), list[Float32]()
    for i in range(3):
        outputs.append(Exact()(x, table.step(i).timestep, plan.samples.rows)[0])
        x, _ = update(x, outputs[i], table.step(i), [])
        x = x + np.float32(table.step(i).sigma) * plan.samples.noise.step(i, plan.samples.numbers)
    for i in (1, 2):
        found = chain.steps[i].chosen_correction
        mean = (outputs[i] - outputs[0]).mean(axis=tuple({*range(x.ndim)} - {1}))
        np.testing.assert_allclose(found.offset, mean, rtol=1e-3, atol=1e-6)
        assert found.gain == (1.0,) * len(mean)
        assert found.sigma_corrected == table.step(i).sigma


def test_end_error_is_the_step_s_times_the_sensitivity_that_probes_found() -> None:
    own, sensitivity = np.array([[0.5], [2.0], [3.0]]), np.array([4.0, 3.0, 1.0])
    products = np.zeros((1, 3, 1, 3, 1))
    for i in range(3):
        products[0, i, 0, i, 0] = (own[i, 0] * sensitivity[i]) ** 2
    probes = Probes.of_every_step(("w8a8",), products)
    errors = np.arange(12.0).reshape(3, 2, 2)
    found = end_amplitudes(errors, Probes(probes.precisions, products, probes.grid, own))
    np.testing.assert_allclose(found, errors * sensitivity[:, None, None])
    with pytest.raises(UsageError, match="needs a quantized precision among its candidates"):
        end_amplitudes(errors, probes)
