"""An engine as a `Denoiser`: feeds the conditioning, doubles the batch under guidance, splits the branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.errors import PtqdError
from engines.networks.conditioning import Conditioning, branch_rows
from engines.networks.embeddings import TIMESTEP, Embedding

STATE = "sample"


@dataclass(frozen=True)
class EngineDenoiser:
    """See `engines.chain.denoiser.Denoiser`.

    Attributes:
        engine: its inputs are `sample` [batch, channels, ...], `timestep` [batch] and those of the conditioning; or of a network's body
            `sample`, `embeddings` and what else it takes of the others.
        conditioning: None for unconditional models.
        guided: evaluate the unconditional branch too, in one doubled batch.
        embeddings: what gives the other inputs of a body.
    """

    engine: Engine
    conditioning: Conditioning | None
    guided: bool
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        out = self.engine.run(self.feeds(x, timestep, rows))
        if out.shape[1:] != x.shape[1:]:
            raise PtqdError(f"The output of {self.engine.label} does not fit.", found=list(out.shape[1:]), expected=list(x.shape[1:]))
        return out.reshape(self.branches, *x.shape)

    @property
    def branches(self) -> int:
        """Rows that the engine is given of one sample."""
        return 2 if self.guided else 1

    def feeds(self, x: Float32, timestep: float, rows: Int64) -> dict[str, NDArray[Any]]:
        """What the engine is given, [branches * batch, ...] of every input."""
        state = np.concatenate([x] * self.branches) if self.guided else x
        asked = branch_rows(rows, guided=self.guided)
        embedded = {name: embedding(timestep, asked) for name, embedding in self.embeddings.items()}
        return {STATE: state, **self._plain(timestep, asked), **embedded}

    def conditioned(self, conditioning: Conditioning) -> EngineDenoiser:
        """The same network with rows of another table."""
        embeddings = {name: embedding.conditioned(conditioning) for name, embedding in self.embeddings.items()}
        return replace(self, conditioning=conditioning, embeddings=embeddings)

    def forget(self) -> None:
        """As if the network had not run yet: what it keeps for the next states is dropped."""
        for embedding in self.embeddings.values():
            embedding.forget()

    def _plain(self, timestep: float, asked: Int64) -> dict[str, NDArray[Any]]:
        """Timestep and conditions, those that the engine takes: a body may do without."""
        found: dict[str, NDArray[Any]] = {}
        if TIMESTEP in self._taken:
            found[TIMESTEP] = np.full(len(asked), timestep, dtype=np.float32)
        if self.conditioning is not None and not self._taken.isdisjoint(self.conditioning.tables):
            found |= {name: value for name, value in self.conditioning.values(asked).items() if name in self._taken}
        return found

    @cached_property
    def _taken(self) -> frozenset[str]:
        """Names of the engine's inputs."""
        return frozenset(spec.name for spec in self.engine.inputs)


__all__ = ["STATE", "TIMESTEP", "EngineDenoiser"]
