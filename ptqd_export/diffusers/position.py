"""Track where a pipeline is in a bundle's schedule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engines.chain.schedule import Schedule
from engines.chain.step import Move
from engines.errors import UsageError
from ptqd_export.diffusers.timesteps import timestep_value, unknown_timestep


class Position:
    """Walks the moves of a schedule in order, from the first timestep that the pipeline names.

    Attributes:
        index: number of the next step; None before the first.
        begin: number of the step at which the pipeline says that it starts; None if it does not say.
    """

    def __init__(self, schedule: Schedule, moves: tuple[Move, ...]) -> None:
        self._schedule = schedule
        self._moves = moves
        self.restart()

    def restart(self) -> None:
        """Prepare for another chain."""
        self.index: int | None = None
        self.begin: int | None = None

    def here(self, timestep: Tensor | float) -> Move:
        """Return the move of the next step, which must be at the pipeline's timestep.

        Raises:
            UsageError: the step is at another timestep, no step is left, or the chain begins at a step that needs earlier predictions.
        """
        value = timestep_value(timestep)
        if self.index is None:
            self.index = self._beginning(value)
        if self.index >= len(self._moves) or not _is_at(self._moves[self.index], value):
            raise self._out_of_order(value, self.index)
        return self._moves[self.index]

    def advance(self) -> None:
        """Record that the step was taken."""
        assert self.index is not None
        self.index += 1

    def first_at(self, timestep: float) -> int:
        """Return the number of the first step at a timestep.

        Raises:
            UsageError: there is no such step.
        """
        for index, move in enumerate(self._moves):
            if _is_at(move, timestep):
                return index
        raise unknown_timestep(timestep, self._schedule)

    def _beginning(self, timestep: float) -> int:
        index = self.first_at(timestep) if self.begin is None else self.begin
        looks_back = any(any(move.step.history_coeffs[1:]) for move in self._moves[index:])
        if index > 0 and looks_back:
            raise UsageError(
                "A chain of this sampler cannot begin at a later step.",
                found=f"{self._schedule.sampler.name}, begun at step {index}, which needs predictions of earlier steps",
                expected="step 0, or a sampler that does not look back",
                mend="add a ddim, ddpm or euler schedule with `ptqd-export schedule` for starting from an image",
            )
        return index

    def _out_of_order(self, timestep: float, index: int) -> UsageError:
        more = index < len(self._moves)
        return UsageError(
            "The pipeline does not walk the schedule in order.",
            found=f"timestep {timestep:g}",
            expected=f"step {index}, timestep {self._moves[index].step.timestep:g}" if more else "set_timesteps before another chain",
            mend="use a pipeline that calls set_timesteps and then takes every step in order",
        )


def _is_at(move: Move, timestep: float) -> bool:
    return bool(np.float32(move.step.timestep) == np.float32(timestep))


def as_timesteps(moves: tuple[Move, ...]) -> Tensor:
    """Return the timesteps [S] as diffusers keeps them: int64 if all are whole, else float32."""
    values = torch.tensor([move.step.timestep for move in moves], dtype=torch.float32)
    return values.long() if bool((values == values.round()).all()) else values
