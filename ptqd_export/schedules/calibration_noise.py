"""The noise and the conditioning rows of calibration samples."""

from __future__ import annotations

import numpy as np

from engines.arrays import Int64
from engines.noise import NoiseSource

CALIBRATION_SEEDS = 2**63
"""Calibration draws from the upper half of the seeds, so that nobody samples what was calibrated on by accident."""


def calibration_noise(seed: int, shape: tuple[int, ...]) -> NoiseSource:
    """The noise of calibration samples of this shape."""
    return NoiseSource(CALIBRATION_SEEDS + seed, shape)


def calibration_rows(noise: NoiseSource, samples: int, rows: int | None) -> Int64:
    """The conditioning row of each of the samples 0, 1, ...; zeros for an unconditional model."""
    numbers = np.arange(samples, dtype=np.int64)
    return np.zeros_like(numbers) if rows is None else noise.row(numbers, rows)
