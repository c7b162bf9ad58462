"""One step of a chain, wherever the state lives: the sampling loop decides, a stepper computes."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoisers
from engines.chain.finite import check_output, is_finite, not_finite
from engines.chain.step import ChainState, Move, advance, evaluate


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
        self._state, self._rows = ChainState(x), rows

    def take(self, move: Move, z: Float32 | None) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = evaluate(self._denoisers[move.precision], self._state.x, move.step, self._rows)
            self._state = advance(self._state, outputs, move, z)
        # A NaN or infinity in the output is one in the state, whatever the coefficients: 0 times either is NaN.
        if not is_finite(self._state.x):
            check_output(outputs, move.precision, move.step.timestep, move.index)
            raise not_finite("The coefficients of a step are too large.", move.precision, move.step.timestep, move.index)

    def state(self) -> Float32:
        return self._state.x
