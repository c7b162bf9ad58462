"""The samples that everything is calibrated on: their noise and their conditioning rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engines.arrays import Int64
from engines.chain.noise import NoiseSource

CALIBRATION_SEEDS = 2**63
"""Calibration draws from the upper half of the seeds, so that nobody samples what was calibrated on by accident."""


@dataclass(frozen=True)
class CalibrationSamples:
    """Samples 0, 1, ..., N - 1. What a sample is does not depend on N.

    Attributes:
        noise: of one sample's shape.
        table_rows: of the conditioning table; None for an unconditional model.
        count: N.
    """

    noise: NoiseSource
    table_rows: int | None
    count: int

    @classmethod
    def draw(cls, seed: int, shape: tuple[int, ...], table_rows: int | None, count: int) -> CalibrationSamples:
        """The samples of a plan's seed, each of this shape."""
        return cls(NoiseSource(CALIBRATION_SEEDS + seed, shape), table_rows, count)

    def first(self, count: int) -> CalibrationSamples:
        """The first samples, and more where `count` is above N."""
        return replace(self, count=count)

    @cached_property
    def numbers(self) -> Int64:
        """[N] sample numbers."""
        return np.arange(self.count, dtype=np.int64)

    @cached_property
    def rows(self) -> Int64:
        """[N] conditioning row of each; zeros for an unconditional model."""
        return np.zeros_like(self.numbers) if self.table_rows is None else self.noise.row(self.numbers, self.table_rows)
