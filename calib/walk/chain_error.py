"""What a chain's quantized steps do to its end samples: measured against full precision, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.chain.schedule import Schedule


@dataclass(frozen=True)
class ChainErrors:
    """Measures chains on the same samples, with the same fresh noise.

    Attributes:
        schedule: its corrections are those of every chain; a shift for the precisions that it chose itself is left out.
        networks: by precision.
        reference: precision of the chain that the others are held against.
        noise: of one sample's shape.
        rows: [n] conditioning row of each of the samples, by sample number.
        samples: [N] sample numbers.
        batch_size: samples that walk together.
    """

    schedule: Schedule
    networks: Mapping[str, Denoiser]
    reference: str
    noise: NoiseSource
    rows: Int64
    samples: Int64
    batch_size: int

    def measure(self, choice: Sequence[str]) -> Float64:
        """[N] mean square difference of each end sample to the reference's, for a precision at each step."""
        difference = np.subtract(self._sample(choice), self._exact, dtype=np.float64)
        return np.asarray(np.square(difference).reshape(len(difference), -1).mean(axis=1))

    @cached_property
    def _exact(self) -> Float32:
        return self._sample((self.reference,) * len(self.schedule.steps))

    def _sample(self, choice: Sequence[str]) -> Float32:
        chain = Chain(with_precisions(self.schedule, choice), self.networks)
        return np.concatenate([chain.sample(self.noise, part, self.rows[part]) for part in batches(self.samples, self.batch_size)])


def with_precisions(schedule: Schedule, choice: Sequence[str]) -> Schedule:
    """The schedule with these precisions, one a step, and without shifts."""
    steps = [step.model_copy(update={"precision": name, "shifted": None}) for step, name in zip(schedule.steps, choice, strict=True)]
    return schedule.model_copy(update={"steps": tuple(steps)})
