"""Measures the error that a chain's quantized steps cause in its end samples, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.chain.schedule import Schedule

Pictured: TypeAlias = Callable[[Float32], Float32]


@dataclass(frozen=True)
class ChainErrors:
    """Measures chains on the same samples, with the same fresh noise.

    Attributes:
        exact: schedule of the chain that the others are compared with, at full precision.
        networks: networks by precision.
        noise: noise source with the shape of one sample.
        rows: conditioning rows [n], indexed by sample number.
        samples: sample numbers [N].
        batch_size: number of samples per batch.
        pictured: turns end samples [n, ...] into the pictures that are compared; None compares the samples themselves.
    """

    exact: Schedule
    networks: Mapping[str, Denoiser]
    noise: NoiseSource
    rows: Int64
    samples: Int64
    batch_size: int
    pictured: Pictured | None = None

    def measure(self, schedule: Schedule) -> Float64:
        """Return the mean square difference of each end sample or picture of a schedule's own chain from that of the exact chain, [N]."""
        difference = np.subtract(self._sample(schedule), self._exact, dtype=np.float64)
        return np.asarray(np.square(difference).reshape(len(difference), -1).mean(axis=1))

    @cached_property
    def _exact(self) -> Float32:
        return self._sample(self.exact)

    def _sample(self, schedule: Schedule) -> Float32:
        chain = Chain(schedule, self.networks)
        parts = (chain.sample(self.noise, part, self.rows[part]) for part in batches(self.samples, self.batch_size))
        return np.concatenate([*(parts if self.pictured is None else map(self.pictured, parts))])


def with_precisions(schedule: Schedule, choice: Sequence[str]) -> Schedule:
    """Return the schedule with these precisions, one per step, without what holds only for the precisions that it chose."""
    steps = [
        step.model_copy(update={"precision": name, "shifted": None, "mixed": None, "reuse": None, "extrapolation": None})
        for step, name in zip(schedule.steps, choice, strict=True)
    ]
    return schedule.model_copy(update={"steps": tuple(steps)})
