"""Steppers compute the steps that the sampling loop decides on, on the host or on a device."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoisers
from engines.chain.features import extrapolated
from engines.chain.finite import check_output, is_finite, not_finite
from engines.chain.step import ChainState, Move, advance, evaluate, evaluate_cut, predicted_clean


class Stepper(Protocol):
    """Owns the state of one batch of chains. Call `start` first, then `take` for each step, then `state`."""

    def start(self, x: Float32, rows: Int64) -> None:
        """Start at the states `x` [batch, *shape]; `rows` [batch] are the samples' rows of the conditioning table."""

    def take(self, move: Move, z: Float32 | None) -> None:
        """Take a step with fresh noise `z` [batch, *shape], or None if the step has none. The stepper owns `z` from then on.

        Raises:
            NotFiniteError: this step returned NaN or infinity, or one of the two steps before did, if a device is that far behind.
        """

    def state(self) -> Float32:
        """Return the current states [batch, *shape]."""


class HostStepper:
    """Keeps the state in an array on the host and, in a chain whose steps reuse features, those of the last full step, or of the last two
    if steps extrapolate them.
    """

    def __init__(self, denoisers: Denoisers) -> None:
        self._denoisers = denoisers
        self._kept: Float32 | None = None
        self._earlier: Float32 | None = None

    def start(self, x: Float32, rows: Int64) -> None:
        self._state, self._rows = ChainState(x), rows
        self._kept = self._earlier = None

    def take(self, move: Move, z: Float32 | None) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = self._evaluate(move)
            self._taken = self._state.x, outputs, move
            self._state = advance(self._state, outputs, move, z)
        # NaN or infinity in the output always reaches the state: even a coefficient of 0 makes it NaN.
        if not is_finite(self._state.x):
            check_output(outputs, move.network, move.step.timestep, move.index)
            raise not_finite("The coefficients of a step are too large.", move.network, move.step.timestep, move.index)

    def _evaluate(self, move: Move) -> Float32:
        network, x = self._denoisers[move.network], self._state.x
        if move.cut is None:
            return evaluate(network, x, move.step, self._rows)
        if not move.reuses:
            self._earlier, self._kept = self._kept if move.keeps_earlier else None, None  # freed before their successors come
            outputs, self._kept = evaluate_cut(network, x, move.step, self._rows, None)
            return outputs
        assert self._kept is not None, "a schedule starts with a full step"
        outputs, _ = evaluate_cut(network, x, move.step, self._rows, extrapolated(self._kept, self._earlier, move.extrapolation))
        return outputs

    def state(self) -> Float32:
        return self._state.x

    def replace(self, x: Float32) -> None:
        """Go on from the states `x` [batch, *shape] with the predictions of the steps so far."""
        self._state = ChainState(x, self._state.history)

    def predicted(self) -> Float32:
        """Return the clean samples [batch, *shape] that the last step predicted; see `predicted_clean`."""
        return predicted_clean(*self._taken)
