"""Wrap an engine as a `Denoiser`: feed the conditioning, double the batch under guidance, split the branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.chain.norm_guidance import NormGuidance
from engines.errors import PtqdError
from engines.networks.conditioning import Conditioning, branch_rows
from engines.networks.control import STATE, Control
from engines.networks.embeddings import TIMESTEP, Embedding


@dataclass(frozen=True)
class EngineDenoiser:
    """An `engines.chain.denoiser.Denoiser` that runs on an engine.

    Attributes:
        engine: takes `sample` [batch, channels, ...], `timestep` [batch] and the conditioning inputs. The body of a network in pieces takes
            `sample`, the inputs in `embeddings`, and any of the others that it still needs.
        conditioning: conditioning table; None for unconditional models.
        guided: whether to evaluate the unconditional branch too, in one doubled batch.
        embeddings: what computes the body's extra inputs, by input name; empty for whole networks.
        combine: makes one branch of both; None returns both.
        control: residuals of a control network; None if the network takes none.
    """

    engine: Engine
    conditioning: Conditioning | None
    guided: bool
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    combine: NormGuidance | None = None
    control: Control | None = None

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        return self.of_branches(self.engine.run(self.feeds(x, timestep, rows)), x)

    def of_branches(self, out: Float32, x: Float32) -> Float32:
        """Return the engine's output [branches * batch, ...] at the states `x` as [branches, batch, ...], or one branch if both combine."""
        if out.shape[1:] != x.shape[1:]:
            raise PtqdError(
                f"The output of {self.engine.label} has the wrong shape.", found=list(out.shape[1:]), expected=list(x.shape[1:])
            )
        branches = out.reshape(self.branches, *x.shape)
        return branches if self.combine is None else self.combine(branches)

    @property
    def branches(self) -> int:
        """Number of engine rows per sample."""
        return 2 if self.guided else 1

    def feeds(self, x: Float32, timestep: float, rows: Int64) -> dict[str, NDArray[Any]]:
        """Return the engine's inputs, each [branches * batch, ...]."""
        state = np.concatenate([x] * self.branches) if self.guided else x
        asked = branch_rows(rows, guided=self.guided)
        embedded = {name: embedding(timestep, asked) for name, embedding in self.embeddings.items()}
        return {STATE: state, **self._plain(timestep, rows), **embedded, **self._residuals(state, timestep, rows)}

    def conditioned(self, conditioning: Conditioning) -> EngineDenoiser:
        """Return this denoiser with another conditioning table, to whose rows no control images belong."""
        embeddings = {name: embedding.conditioned(conditioning) for name, embedding in self.embeddings.items()}
        control = None if self.control is None else self.control.silent()
        return replace(self, conditioning=conditioning, embeddings=embeddings, control=control)

    def forget(self) -> None:
        """Clear the cached embeddings, as if the network had not run yet."""
        for embedding in self.embeddings.values():
            embedding.forget()

    def _residuals(self, state: Float32, timestep: float, rows: Int64) -> dict[str, NDArray[Any]]:
        """Return the residuals that the engine takes."""
        if self.control is None:
            return {}
        silent = self.control.source is None or self.conditioning is None
        conditions = {} if silent or self.conditioning is None else self.conditioning.feeds(rows, guided=self.guided)
        found = self.control.feeds(state, np.full(len(state), timestep, dtype=np.float32), conditions, rows)
        return {name: value for name, value in found.items() if name in self._taken}

    def _plain(self, timestep: float, rows: Int64) -> dict[str, NDArray[Any]]:
        """Return the timestep and conditioning inputs that the engine takes; a body may take none of them."""
        found: dict[str, NDArray[Any]] = {}
        if TIMESTEP in self._taken:
            found[TIMESTEP] = np.full(self.branches * len(rows), timestep, dtype=np.float32)
        if self.conditioning is not None and not self._taken.isdisjoint(self.conditioning.tables):
            conditions = self.conditioning.feeds(rows, guided=self.guided)
            found |= {name: value for name, value in conditions.items() if name in self._taken}
        return found

    @cached_property
    def _taken(self) -> frozenset[str]:
        """Names of the engine's inputs."""
        return frozenset(spec.name for spec in self.engine.inputs)


__all__ = ["STATE", "TIMESTEP", "EngineDenoiser"]
