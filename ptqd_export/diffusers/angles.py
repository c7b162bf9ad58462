"""How a pipeline has the states of a chain: as the chain does, or by angles, as SanaSprintPipeline has those of TrigFlow.

TrigFlow (Lu and Song 2024, arXiv 2410.11081) mixes `cos(t) x0 + sin(t) eps`. Divided by `sin(t) + cos(t)`, that is the state of a flow at
`sigma = sin(t) / (sin(t) + cos(t))`, which is what the network takes and the chain walks. The pipeline makes TrigFlow's velocity of the
network's output before the scheduler gets it, so this undoes that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from engines.chain.schedule import Schedule
from engines.chain.step import Move
from engines.errors import UsageError
from ptqd_export.diffusers.asked_levels import CLOSE
from ptqd_export.diffusers.position import as_timesteps
from ptqd_export.diffusers.timesteps import timestep_value

ROUNDED = 1e-4
"""Relative difference up to which an output that was undone is the network's own."""


class ChainStates:
    """States as the chain has them.

    Attributes:
        config: what the scheduler's configuration says about them.
        timesteps: what the pipeline calls the steps.
    """

    config: Mapping[str, float] = MappingProxyType({})

    def __init__(self, moves: tuple[Move, ...]) -> None:
        self.timesteps = as_timesteps(moves)

    def check(self, max_timesteps: float | None, intermediate_timesteps: float | None) -> None:
        """Ignore what only pipelines with angles ask for."""

    def timestep(self, given: Tensor | float) -> Tensor | float:
        """Return the chain's timestep."""
        return given

    def state(self, given: Tensor, _move: Move) -> Tensor:
        """Return the chain's state."""
        return given

    def output(self, given: Tensor, _state: Tensor, _move: Move, _own: Tensor | None) -> Tensor:
        """Return the network's output: from what the pipeline turned it into, or `_own`, if the output itself is known."""
        return given

    def returned(self, state: Tensor, _following: Move | None) -> Tensor:
        """Return the chain's state as the pipeline has it at the following step; None is the end."""
        return state


class AngleStates(ChainStates):
    """States of TrigFlow with data of deviation 1, which `sigma_data` of the scheduler's configuration says.

    Attributes:
        timesteps: angles float32 [S + 1], with the one of the clean sample at the end, which the pipeline leaves out.
    """

    config = MappingProxyType({"sigma_data": 1.0})

    def __init__(self, moves: tuple[Move, ...], trained: int) -> None:
        super().__init__(moves)
        self._sigma = {move.index: move.step.timestep / trained for move in moves}
        self._moves = moves
        self._trained = trained
        self.timesteps = torch.tensor([*(np.arctan2(one, 1 - one) for one in self._sigma.values()), 0.0], dtype=torch.float32)

    def check(self, max_timesteps: float | None, intermediate_timesteps: float | None) -> None:
        """Check the angles that the pipeline asks for; it has defaults for one step, two and more.

        Raises:
            UsageError: they are not those of the chain.
        """
        own = self.timesteps[:-1].tolist()
        asked = own if max_timesteps is None else np.linspace(max_timesteps, 0, len(own) + 1)[:-1].tolist()
        asked = [asked[0], intermediate_timesteps] if intermediate_timesteps is not None and len(own) == 2 else asked
        if not np.allclose(asked, own, rtol=0, atol=CLOSE):
            raise UsageError(
                "The bundle's schedule has other angles.",
                found=f"max_timesteps={max_timesteps}, intermediate_timesteps={intermediate_timesteps}",
                expected=", ".join(f"{angle:.4g}" for angle in own),
                mend="leave out max_timesteps and intermediate_timesteps, which is None unless there are two steps",
            )

    def timestep(self, given: Tensor | float) -> Tensor | float:
        value = timestep_value(given)
        found = (move for move, angle in zip(self._moves, self.timesteps.tolist(), strict=False) if angle == value)
        move = next(found, None)
        return float(self._trained * np.sin(value) / (np.sin(value) + np.cos(value))) if move is None else move.step.timestep

    def state(self, given: Tensor, move: Move) -> Tensor:
        return given * _norm(self._sigma[move.index])

    def output(self, given: Tensor, state: Tensor, move: Move, own: Tensor | None) -> Tensor:
        """Undo `((1 - 2 sigma) x + (1 - 2 sigma + 2 sigma^2) v) / norm`; the network's own output has not been rounded on the way."""
        sigma = self._sigma[move.index]
        found = (given * _norm(sigma) - (1 - 2 * sigma) * state) / _norm(sigma) ** 2
        is_own = own is not None and own.shape == found.shape and float((own - found).norm()) <= ROUNDED * float(own.norm())
        return own if own is not None and is_own else found

    def returned(self, state: Tensor, following: Move | None) -> Tensor:
        return state if following is None else state / _norm(self._sigma[following.index])


def _norm(sigma: float) -> float:
    """Return the norm of the shares of sample and noise at a level; its square is `1 - 2 sigma + 2 sigma^2`."""
    return float(np.hypot(1 - sigma, sigma))


def states_of(schedule: Schedule, moves: tuple[Move, ...], trained: int) -> ChainStates:
    """Return the form of the states in the pipelines of a schedule's sampler, given the number of training timesteps."""
    return AngleStates(moves, trained) if schedule.sampler.name == "scm" else ChainStates(moves)
