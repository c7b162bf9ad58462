"""The sampling loop of every sampler: switches engines between steps, corrects outputs and adds calibrated fresh noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoisers
from engines.chain.late_start import Level
from engines.chain.noise import Noise, NoiseSource
from engines.chain.origin import Origin
from engines.chain.schedule import Schedule, Step
from engines.chain.step import Move
from engines.chain.stepper import HostStepper, Stepper

DRAWN_BYTES = 2**20
"""Most bytes of noise to draw ahead. Between two runs of a network the cache is cold, and drawing for one sample takes twice as long."""


@dataclass(frozen=True)
class Chain:
    """How to walk a schedule.

    Attributes:
        schedule: coefficients and corrections.
        denoisers: networks by precision.
        precision: one precision for every step, none of which reuses features, or None for the schedule's choice. `Schedule.corrects` says
            whether the corrections hold.
        corrected: apply the correction, the calibrated sigma and the shift; False is the plain quantized sampler.
        guidance: guidance scale w, or None for the scale that the corrections were fitted at.
        stepper: creates the stepper, which computes the steps and owns the state; a `HostStepper` if the origin has a mask.
        levels: levels of the states of a schedule that starts late, see `LateStart`; empty for a whole schedule.
        origin: clean samples that the chain starts from; None starts from noise.
    """

    schedule: Schedule
    denoisers: Denoisers
    precision: str | None = None
    corrected: bool = True
    guidance: float | None = None
    stepper: Callable[[Denoisers], Stepper] = HostStepper
    levels: tuple[Level, ...] = ()
    origin: Origin | None = None

    @property
    def step_precisions(self) -> tuple[str, ...]:
        """The precision of each step."""
        return tuple(self.precision or step.precision for step in self.schedule.steps)

    @property
    def cut(self) -> str | None:
        """Where the networks are cut; None if no step reuses features."""
        return self.schedule.cut if self.precision is None else None

    @property
    def step_networks(self) -> tuple[str, ...]:
        """What each step computes: a precision, or a precision at a cut, see `engines.chain.features`."""
        return tuple(self.precision or step.network for step in self.schedule.steps)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that the chain needs."""
        return tuple(self.timesteps)

    @property
    def timesteps(self) -> dict[str, list[float]]:
        """The timesteps that each network is evaluated at, in order."""
        found: dict[str, list[float]] = {}
        for move in map(self.move, self.schedule.steps):
            found.setdefault(move.network, []).append(move.step.timestep)
        return found

    @property
    def scale(self) -> float:
        """The guidance scale of the chain."""
        return self.schedule.sampler.guidance if self.guidance is None else self.guidance

    def sample(self, noise: Noise, samples: Int64, rows: Int64, on_step: Callable[[], None] = lambda: None) -> Float32:
        """Return the final states of the given sample numbers, float32 [len(samples), *shape].

        A sample depends only on its number, its row and the seed of the noise source.

        Args:
            noise: noise source with the shape of one state.
            samples: sample numbers.
            rows: conditioning row of each sample.
            on_step: called after every step.
        """
        stepper = self.stepper(self.denoisers)
        for _ in self.walk(stepper, noise, samples, rows):
            on_step()
        return stepper.state()

    def walk(self, stepper: Stepper, noise: Noise, samples: Int64, rows: Int64) -> Iterator[Move]:
        """Take the steps one by one with a stepper for `denoisers`; yield each move after it was taken. See `sample`."""
        moves = [self.move(step) for step in self.schedule.steps]
        eps = noise.start(samples)
        known = None if self.origin is None else self.origin.of(samples, eps)
        init_sigma = self.schedule.init_sigma
        stepper.start(np.float32(init_sigma) * eps if known is None else known.first(init_sigma), rows)
        for move, z in zip(moves, _fresh_noise(noise, moves, samples), strict=True):
            stepper.take(move, z)
            if known is not None and known.origin.mask is not None:
                assert isinstance(stepper, HostStepper), "only the host replaces states"
                stepper.replace(known.kept(move.index, stepper.state()))
            yield move

    def move(self, scheduled: Step) -> Move:
        """Return the move for a step of the schedule: its network, correction and noise."""
        precision, own = self.precision or scheduled.precision, self.precision is None
        if not self.corrected:
            move = Move.plain(scheduled, precision, self.scale)
        else:
            step = scheduled.corrected if self.precision in (None, scheduled.network) else scheduled
            correction = scheduled.chosen_correction if own else step.corrections[precision]
            move = Move.corrected(step, precision, self.scale, correction)
        if self.cut is None:
            return move
        reuses, extrapolation = scheduled.reuse is not None, scheduled.extrapolation or 0.0
        return replace(move, cut=self.cut, reuses=reuses, extrapolation=extrapolation, keeps_earlier=self._extrapolates)

    @cached_property
    def _extrapolates(self) -> bool:
        return self.schedule.extrapolates


def _fresh_noise(noise: Noise, moves: Sequence[Move], samples: Int64) -> Iterator[Float32 | None]:
    """Yield the fresh noise of each step, or None if the step has none. Draws several steps at once, at most `DRAWN_BYTES`."""
    block = max(1, DRAWN_BYTES // (4 * len(samples) * math.prod(noise.shape)))
    for begin in range(0, len(moves), block):
        yield from [noise.step(move.index, samples) if move.sigma > 0 else None for move in moves[begin : begin + block]]


def batches(samples: Int64, size: int) -> Iterator[Int64]:
    """Yield consecutive batches of at most `size` sample numbers."""
    for begin in range(0, len(samples), size):
        yield samples[begin : begin + size]


def rows_of(samples: Int64, noise: NoiseSource, rows: int, chosen: Int64 | None) -> Int64:
    """Return the conditioning row of each sample: entry n (cyclically) of `chosen` for sample n, or a row drawn from (seed, n) if None."""
    if chosen is not None:
        return np.asarray(chosen[samples % len(chosen)])
    return noise.row(samples, rows)
