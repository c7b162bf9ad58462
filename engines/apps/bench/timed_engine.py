"""Engines under a stopwatch: how much of a chain's time is the runtime's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine
from engines.networks.engine_denoiser import EngineDenoiser


@dataclass
class Stopwatch:
    """Seconds so far; any number of engines may share one, as they run in turn."""

    seconds: float = 0.0


class TimedEngine(Engine):
    """Runs another engine. Only the runtime's own time is counted, not the checks of the base class."""

    def __init__(self, engine: Engine, watch: Stopwatch) -> None:
        super().__init__(engine.label, engine.inputs, engine.output)
        self._engine = engine
        self._watch = watch

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        begin = time.perf_counter()
        out = self._engine._run(feeds)
        self._watch.seconds += time.perf_counter() - begin
        return out


def timed(denoiser: EngineDenoiser, watch: Stopwatch) -> EngineDenoiser:
    """The same denoiser, its engines under the stopwatch."""
    embeddings = {name: embedding.run_by(TimedEngine(embedding.engine, watch)) for name, embedding in denoiser.embeddings.items()}
    return replace(denoiser, engine=TimedEngine(denoiser.engine, watch), embeddings=embeddings)
