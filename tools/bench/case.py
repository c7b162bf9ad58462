"""One case of the benchmark: a built model at one batch size."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.bench.bench import excerpt
from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoiser, Denoisers, is_guided
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.chain.schedule import Schedule
from tools.bench.models import BUNDLE, PLAN

SEED = 0
CALIBRATION_SEED = 1
FULL_PRECISION = "fp32"


@dataclass(frozen=True)
class Visited:
    """The inputs of a network along a chain.

    Attributes:
        states: states, [steps, batch, *sample_shape].
        timesteps: timesteps, [steps].
        rows: rows of the conditioning table, [batch].
    """

    states: Float32
    timesteps: tuple[float, ...]
    rows: Int64


@dataclass(frozen=True)
class Case:
    """A built model at one batch size; the object is small enough to send to every process.

    Attributes:
        folder: the model's folder, as written by `tools.bench build`.
        batch: samples per chain.
        steps: number of steps to take, evenly spaced over the schedule; None takes all.
    """

    folder: Path
    batch: int
    steps: int | None = None

    @property
    def plan(self) -> Path:
        return self.folder / PLAN

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle.open(self.folder / BUNDLE)

    @cached_property
    def schedule(self) -> Schedule:
        return excerpt(self.bundle.schedule(), self.steps)

    @property
    def guided(self) -> bool:
        return is_guided(self.schedule.sampler.guidance)

    @property
    def engine_rows(self) -> int:
        """Rows of a network call; guidance needs two per sample."""
        return (2 if self.guided else 1) * self.batch

    def rows(self, samples: Int64) -> Int64:
        conditioning = self.bundle.manifest.model.conditioning
        return np.zeros_like(samples) if conditioning is None else rows_of(samples, self.noise(), conditioning.rows, None)

    def noise(self, seed: int = SEED) -> NoiseSource:
        return NoiseSource(seed, self.bundle.manifest.model.sample_shape)

    def sample(self, denoisers: Denoisers, precision: str, seed: int = SEED) -> Float32:
        """Draw one batch with our sampling loop."""
        samples = np.arange(self.batch, dtype=np.int64)
        return Chain(self.schedule, denoisers, precision).sample(self.noise(seed), samples, self.rows(samples))

    def call(self, denoiser: Denoiser) -> float:
        """Return the seconds that a network call at the first step takes."""
        samples = np.arange(self.batch, dtype=np.int64)
        x, rows = self.noise().start(samples), self.rows(samples)
        begin = time.perf_counter()
        denoiser(x, self.schedule.steps[0].timestep, rows)
        return time.perf_counter() - begin

    def visited(self, denoisers: Denoisers, seed: int = SEED) -> Visited:
        """Return the states of full-precision chains at the case's steps; the chains take all steps of the schedule."""
        recorder, samples = _Recorder(denoisers[FULL_PRECISION]), np.arange(self.batch, dtype=np.int64)
        rows, taken = self.rows(samples), {step.timestep for step in self.schedule.steps}
        Chain(self.bundle.schedule(), {FULL_PRECISION: recorder}, FULL_PRECISION).sample(self.noise(seed), samples, rows)
        kept = [(x, timestep) for x, timestep in zip(recorder.states, recorder.timesteps, strict=True) if timestep in taken]
        states, timesteps = zip(*kept, strict=True)
        return Visited(np.stack(states), timesteps, rows)


class _Recorder:
    """A denoiser that records its inputs."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self.states: list[NDArray[np.float32]] = []
        self.timesteps: list[float] = []

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        self.states.append(x.copy())
        self.timesteps.append(timestep)
        out: Float32 = self._denoiser(x, timestep, rows)
        return out
