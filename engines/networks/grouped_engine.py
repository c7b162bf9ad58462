"""A network whose activation scales depend on the timestep: one engine per group of neighbouring steps, used as one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Backend, Engine, TensorSpec
from engines.errors import PtqdError
from engines.networks.embeddings import TIMESTEP

GroupGraphs: TypeAlias = Sequence[tuple[float, Path]]
"""The graphs of one network, one per group of steps, each with the bound that its timesteps lie below; see `GroupedEngine`."""


class GroupedEngine(Engine):
    """Runs every call on the engine of the timestep's group. It takes `timestep`, even if its engines do not.

    Args:
        groups: engines with the same inputs and output, the noisiest group first, each with the bound that its timesteps lie below. Bounds
            fall from group to group; that of the first is infinite.
    """

    def __init__(self, groups: Sequence[tuple[float, Engine]]) -> None:
        first = groups[0][1]
        inputs = {spec.name: spec for spec in (*first.inputs, TensorSpec(TIMESTEP, np.dtype(np.float32), ()))}
        super().__init__(first.label, tuple(inputs.values()), first.output, first.kept)
        self._groups = tuple(groups)

    def at(self, timestep: float) -> Engine:
        """Return the engine of a timestep's group."""
        return next(engine for below, engine in reversed(self._groups) if timestep < below)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        engine = self._of(feeds)
        return engine._run({spec.name: feeds[spec.name] for spec in engine.inputs})

    def _of(self, feeds: Mapping[str, NDArray[Any]]) -> Engine:
        lowest, highest = float(feeds[TIMESTEP].min()), float(feeds[TIMESTEP].max())
        engine = self.at(lowest)
        if engine is not self.at(highest):
            raise PtqdError(
                f"A batch of {self.label} mixes groups of steps.",
                found=f"timesteps from {lowest:g} to {highest:g}",
                expected="timesteps of one group, whose activation scales the whole batch shares",
            )
        return engine


def open_groups(backend: Backend, graphs: GroupGraphs, rows: int) -> Engine:
    """Return the engine of a network.

    Args:
        backend: backend that opens the graphs.
        graphs: graphs of the network.
        rows: rows of a call.
    """
    return grouped([(below, backend.open(graph, rows)) for below, graph in graphs])


def grouped(engines: Sequence[tuple[float, Engine]]) -> Engine:
    """Return the engines of a network as one engine; the engine itself if there is a single group."""
    return engines[0][1] if len(engines) == 1 else GroupedEngine(engines)


def engine_at(engine: Engine, timestep: float) -> Engine:
    """Return the engine that runs a timestep: that of its group, or the engine itself if it has no groups."""
    return engine.at(timestep) if isinstance(engine, GroupedEngine) else engine
