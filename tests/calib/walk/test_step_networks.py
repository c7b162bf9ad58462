"""Batches of full precision alone."""

from __future__ import annotations

import numpy as np

from calib.walk.step_networks import Elsewhere, StepBatch, StepNetworks
from tests.calib.walk.gaussian_walk import SHAPE, Exact, ddim


def test_full_precision_alone_runs_no_other_network() -> None:
    x = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    rows, row = np.arange(2, dtype=np.int64), ddim().step(3)
    found = StepNetworks(Exact(), {"w8a8": Elsewhere("w8a8")}, 1.0)(StepBatch(3, row, x, rows, rows, exact=True))
    np.testing.assert_array_equal(found.reference, Exact()(x, row.timestep, rows)[0])
    assert not found.outputs
    assert not found.moments
