"""Errors of chains whose every step adds a known constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from calib.walk.chain_error import ChainErrors, with_precisions
from engines.arrays import Float32, Int64
from engines.chain.noise import NoiseSource
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step, StepShift

SHAPE = (1, 2, 2)
A = (0.5, 2.0, 3.0)
OFFSETS = {"w4a8": 0.25, "w8a8": 0.0, "fp32": 0.0}


@dataclass(frozen=True)
class Constant:
    """`out = value` plus the number of the row."""

    value: float

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
        return (np.zeros_like(x) + np.float32(self.value) + rows.reshape(-1, 1, 1, 1).astype(np.float32))[None]


NETWORKS = {"w4a8": Constant(1.0), "w8a8": Constant(0.125), "fp32": Constant(0.0)}


def _schedule() -> Schedule:
    corrections = {
        name: Correction(
            gain=(1.0,), offset=(offset,), state_gain=(0.0,), sigma_corrected=0.1, residual_variance=0.0, unabsorbed_variance=0.0
        )
        for name, offset in OFFSETS.items()
    }
    steps = tuple(
        Step(
            step=i, timestep=float(i), precision="w4a8", x_coeff=A[i], out_coeff=1.0, prediction_coeffs=(1.0, 0.0), history_coeffs=(),
            input_scale=1.0, sigma=0.1, clip=None, corrections=corrections,
            shifted=StepShift(timestep=7.0, input_scale=9.0, x_coeff=9.0, out_coeff=9.0, prediction_coeffs=(9.0, 9.0)) if i else None,
        )
        for i in range(3)
    )  # fmt: skip
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=3, eta=1.0, guidance=1.0),
        correction=CorrectionRecord(mode="signed", variance="schedule"),
        policy="snr",
        init_sigma=1.0,
        steps=steps,
    )


def _errors(batch_size: int = 2) -> ChainErrors:
    rows = np.arange(8, dtype=np.int64)
    exact = with_precisions(_schedule(), ("fp32",) * 3)
    return ChainErrors(exact, NETWORKS, NoiseSource(0, SHAPE), rows, np.array([2, 5, 7]), batch_size)


@pytest.mark.parametrize(
    ("choice", "difference"),
    [
        (("fp32", "fp32", "fp32"), 0.0),
        (("fp32", "fp32", "w8a8"), 0.125),
        (("w8a8", "fp32", "fp32"), 0.125 * 2 * 3),
        (("fp32", "w4a8", "w8a8"), 1.25 * 3 + 0.125),
    ],
)
def test_the_corrected_errors_of_the_steps_reach_the_end(choice: tuple[str, ...], difference: float) -> None:
    """Every sample is off by the same: the same noise, and its own row, are on both sides."""
    np.testing.assert_allclose(_errors().measure(with_precisions(_schedule(), choice)), [difference**2] * 3, rtol=1e-5)


def test_batches_do_not_matter() -> None:
    chain = with_precisions(_schedule(), ("w4a8", "w8a8", "fp32"))
    np.testing.assert_array_equal(_errors(1).measure(chain), _errors(3).measure(chain))


def test_other_precisions_are_taken_without_the_shift_of_the_chosen_ones() -> None:
    changed = with_precisions(_schedule(), ("fp32", "w8a8", "w4a8"))
    assert [step.precision for step in changed.steps] == ["fp32", "w8a8", "w4a8"]
    assert not any(step.shifted for step in changed.steps)
    assert [step.corrections for step in changed.steps] == [step.corrections for step in _schedule().steps]
