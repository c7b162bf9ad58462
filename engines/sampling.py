"""The sampling loop: engines swapped across timesteps, outputs corrected, fresh noise calibrated. Written once for every sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.correction import correct
from engines.denoiser import Denoiser, guide
from engines.noise import NoiseSource
from engines.schedule import Schedule, Step
from engines.update import update


class Denoisers(Protocol):
    """Anything that gives a denoiser by the name of its precision: a bank, or a dict."""

    def __getitem__(self, precision: str) -> Denoiser: ...


@dataclass(frozen=True)
class Chain:
    """How to walk a schedule.

    Attributes:
        schedule: coefficients and corrections.
        denoisers: by precision.
        precision: one precision for every step, or None for the schedule's choice; see `Schedule.corrects` for where others are corrected.
        corrected: apply the correction, the calibrated sigma and the shift; False is the plain quantized sampler.
        guidance: scale w, or None for the one that the corrections were fitted at.
    """

    schedule: Schedule
    denoisers: Denoisers
    precision: str | None = None
    corrected: bool = True
    guidance: float | None = None

    @property
    def step_precisions(self) -> tuple[str, ...]:
        """The precision that takes each step."""
        return tuple(self.precision or step.precision for step in self.schedule.steps)

    def sample(self, noise: NoiseSource, samples: Int64, rows: Int64, on_step: Callable[[], None] = lambda: None) -> Float32:
        """Final states of the given sample numbers, float32 [len(samples), *shape].

        A sample depends on its number, its row and the noise source's seed alone.

        Args:
            noise: its shape is that of one state.
            samples: sample numbers.
            rows: the conditioning row of each sample.
            on_step: called after every step.
        """
        x = np.float32(self.schedule.init_sigma) * noise.start(samples)
        history: list[Float32] = []
        for scheduled in self.schedule.steps:
            step = scheduled.corrected if self.corrected and self.precision in (None, scheduled.precision) else scheduled
            out, sigma = self._corrected(step, x, self._out(step, x, rows))
            x, history = update(x, out, step, history)
            if sigma > 0:
                x += np.float32(sigma) * noise.step(step.step, samples)
            on_step()
        return x

    def _out(self, step: Step, x: Float32, rows: Int64) -> Float32:
        denoiser = self.denoisers[self.precision or step.precision]
        scaled = np.asarray(np.float32(step.input_scale) * x)
        guidance = self.schedule.sampler.guidance if self.guidance is None else self.guidance
        return guide(denoiser(scaled, step.timestep, rows), guidance)

    def _corrected(self, step: Step, x: Float32, out: Float32) -> tuple[Float32, float]:
        if not self.corrected:
            return out, step.sigma
        correction = step.corrections[self.precision or step.precision]
        return correct(out, x, correction.gain, correction.offset, correction.state_gain), correction.sigma_corrected


def batches(samples: Int64, size: int) -> Iterator[Int64]:
    """Consecutive pieces of at most `size` sample numbers."""
    for begin in range(0, len(samples), size):
        yield samples[begin : begin + size]


def rows_of(samples: Int64, noise: NoiseSource, rows: int, chosen: Int64 | None) -> Int64:
    """The conditioning row of each sample: number n takes entry n (cyclically) of the rows asked for, else one drawn from (seed, n)."""
    if chosen is not None:
        return np.asarray(chosen[samples % len(chosen)])
    return noise.row(samples, rows)
