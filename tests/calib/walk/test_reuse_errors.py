"""The error of features by their age, on Gaussian data, and what it does to the end sample."""

from __future__ import annotations

import numpy as np
import pytest

from calib.correction.step_fit import CorrectionChoice
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.reuse_errors import MOST_AGE, ReusePlan, end_amplitudes, reuse_evaluations, step_errors
from calib.walk.sensitivity import Probes
from engines.arrays import Float32
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
    found = step_errors(plan, lambda: asked.append(None))
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
