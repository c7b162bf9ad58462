"""One step of a chain, wherever the state lives: the sampling loop decides, a stepper computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.correction import correct
from engines.denoiser import Denoisers, guide
from engines.finite import check_output, is_finite, not_finite
from engines.schedule import Step
from engines.update import update


@dataclass(frozen=True)
class Move:
    """What the loop has decided for one step.

    Attributes:
        step: its timestep and coefficients.
        precision: of the network that takes it.
        guidance: scale w.
        gain: of the correction, [channels], or one for all of them.
        offset: likewise.
        state_gain: likewise.
        sigma: standard deviation of the fresh noise.
    """

    step: Step
    precision: str
    guidance: float
    gain: Sequence[float]
    offset: Sequence[float]
    state_gain: Sequence[float]
    sigma: float


class Stepper(Protocol):
    """Owns the state of the chains of one batch. `start` comes first, then a `take` for each step, then `state`."""

    def start(self, x: Float32, rows: Int64) -> None:
        """Begin at the states `x` [batch, *shape]; `rows` [batch] are the samples' rows of the conditioning table."""

    def take(self, move: Move, z: Float32 | None) -> None:
        """Take a step, with fresh noise `z` [batch, *shape], which is the stepper's from then on, or None where the step has none.

        Raises:
            NotFiniteError: this step, or where the device is a step ahead the one before it, gave NaN or infinity.
        """

    def state(self) -> Float32:
        """The states as they are now, [batch, *shape]."""


class HostStepper:
    """The state is an array on the host."""

    def __init__(self, denoisers: Denoisers) -> None:
        self._denoisers = denoisers

    def start(self, x: Float32, rows: Int64) -> None:
        self._x, self._rows = x, rows
        self._history: list[Float32] = []

    def take(self, move: Move, z: Float32 | None) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            out = self._step(move, z)
        # A NaN or infinity in the output is one in the state, whatever the coefficients: 0 times either is NaN.
        if not is_finite(self._x):
            check_output(out, move.precision, move.step.timestep, move.step.step)
            raise not_finite("The coefficients of a step are too large.", move.precision, move.step.timestep, move.step.step)

    def _step(self, move: Move, z: Float32 | None) -> Float32:
        """Take it; returns the network's output."""
        scaled = self._x if move.step.input_scale == 1 else np.asarray(np.float32(move.step.input_scale) * self._x)
        branches = self._denoisers[move.precision](scaled, move.step.timestep, self._rows)
        out = correct(guide(branches, move.guidance), self._x, move.gain, move.offset, move.state_gain)
        self._x, self._history = update(self._x, out, move.step, self._history)
        if z is not None:
            z *= np.float32(move.sigma)
            self._x += z
        return branches

    def state(self) -> Float32:
        return self._x
