"""The sampling loop: engines swapped across timesteps, outputs corrected, fresh noise calibrated. Written once for every sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoisers
from engines.chain.noise import Noise, NoiseSource
from engines.chain.schedule import Schedule, Step
from engines.chain.step import Move
from engines.chain.stepper import HostStepper, Stepper

DRAWN_BYTES = 2**20
"""Noise that is drawn ahead. Between two runs of a network, when nothing is in cache, drawing for one sample takes twice as long."""


@dataclass(frozen=True)
class Chain:
    """How to walk a schedule.

    Attributes:
        schedule: coefficients and corrections.
        denoisers: by precision.
        precision: one precision for every step, or None for the schedule's choice; see `Schedule.corrects` for where others are corrected.
        corrected: apply the correction, the calibrated sigma and the shift; False is the plain quantized sampler.
        guidance: scale w, or None for the one that the corrections were fitted at.
        stepper: what computes the steps, and keeps the state.
    """

    schedule: Schedule
    denoisers: Denoisers
    precision: str | None = None
    corrected: bool = True
    guidance: float | None = None
    stepper: Callable[[Denoisers], Stepper] = HostStepper

    @property
    def step_precisions(self) -> tuple[str, ...]:
        """The precision that takes each step."""
        return tuple(self.precision or step.precision for step in self.schedule.steps)

    @property
    def timesteps(self) -> dict[str, list[float]]:
        """By precision, what its network is given from step to step."""
        found: dict[str, list[float]] = {}
        for move in map(self.move, self.schedule.steps):
            found.setdefault(move.precision, []).append(move.step.timestep)
        return found

    @property
    def scale(self) -> float:
        """The guidance scale that is sampled at."""
        return self.schedule.sampler.guidance if self.guidance is None else self.guidance

    def sample(self, noise: Noise, samples: Int64, rows: Int64, on_step: Callable[[], None] = lambda: None) -> Float32:
        """Final states of the given sample numbers, float32 [len(samples), *shape].

        A sample depends on its number, its row and the noise source's seed alone.

        Args:
            noise: of one state's shape.
            samples: sample numbers.
            rows: the conditioning row of each sample.
            on_step: called after every step.
        """
        moves = [self.move(step) for step in self.schedule.steps]
        stepper = self.stepper(self.denoisers)
        stepper.start(np.float32(self.schedule.init_sigma) * noise.start(samples), rows)
        for move, z in zip(moves, _drawn(noise, moves, samples), strict=True):
            stepper.take(move, z)
            on_step()
        return stepper.state()

    def move(self, scheduled: Step) -> Move:
        """What is done at a step of the schedule."""
        precision = self.precision or scheduled.precision
        if not self.corrected:
            return Move.plain(scheduled, precision, self.scale)
        step = scheduled.corrected if self.precision in (None, scheduled.precision) else scheduled
        return Move.corrected(step, precision, self.scale)


def _drawn(noise: Noise, moves: Sequence[Move], samples: Int64) -> Iterator[Float32 | None]:
    """Fresh noise of every step, or None where it has none; of several steps at once, as far as `DRAWN_BYTES` go."""
    block = max(1, DRAWN_BYTES // (4 * len(samples) * math.prod(noise.shape)))
    for begin in range(0, len(moves), block):
        yield from [noise.step(move.index, samples) if move.sigma > 0 else None for move in moves[begin : begin + block]]


def batches(samples: Int64, size: int) -> Iterator[Int64]:
    """Consecutive pieces of at most `size` sample numbers."""
    for begin in range(0, len(samples), size):
        yield samples[begin : begin + size]


def rows_of(samples: Int64, noise: NoiseSource, rows: int, chosen: Int64 | None) -> Int64:
    """The conditioning row of each sample: number n takes entry n (cyclically) of the rows asked for, else one drawn from (seed, n)."""
    if chosen is not None:
        return np.asarray(chosen[samples % len(chosen)])
    return noise.row(samples, rows)
