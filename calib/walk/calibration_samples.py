"""The calibration samples: their noise and their conditioning rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engines.arrays import Int64
from engines.chain.noise import NoiseSource

CALIBRATION_SEEDS = 2**63
"""Calibration draws from the upper half of the seeds, so that nobody samples the calibration samples by accident."""


@dataclass(frozen=True)
class CalibrationSamples:
    """Samples 0, 1, ..., N - 1. A sample does not depend on N.

    Attributes:
        noise: noise source with the shape of one sample.
        table_rows: number of rows of the conditioning table; None for an unconditional model.
        count: number of samples N.
    """

    noise: NoiseSource
    table_rows: int | None
    count: int

    @classmethod
    def draw(cls, seed: int, shape: tuple[int, ...], table_rows: int | None, count: int) -> CalibrationSamples:
        """Draw the samples of a plan's seed, each of the given shape."""
        return cls(NoiseSource(CALIBRATION_SEEDS + seed, shape), table_rows, count)

    def first(self, count: int) -> CalibrationSamples:
        """Return samples 0, ..., `count` - 1; `count` may be larger than N."""
        return replace(self, count=count)

    @cached_property
    def numbers(self) -> Int64:
        """The sample numbers, [N]."""
        return np.arange(self.count, dtype=np.int64)

    @cached_property
    def rows(self) -> Int64:
        """The conditioning row of each sample, [N]; zeros for an unconditional model."""
        return np.zeros_like(self.numbers) if self.table_rows is None else self.noise.row(self.numbers, self.table_rows)
