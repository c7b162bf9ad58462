"""Engines with a stopwatch, which measures how much of a chain's time the runtime takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine
from engines.networks.cut_engines import CutEngines
from engines.networks.engine_denoiser import EngineDenoiser


@dataclass
class Stopwatch:
    """Seconds so far. Any number of engines may share a stopwatch, as they run in turn."""

    seconds: float = 0.0


class TimedEngine(Engine):
    """Runs another engine and times only its runtime, not the checks of the base class."""

    def __init__(self, engine: Engine, watch: Stopwatch) -> None:
        super().__init__(engine.label, engine.inputs, engine.output, engine.kept)
        self._engine = engine
        self._watch = watch

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        begin = time.perf_counter()
        found = self._engine._run(feeds)
        self._watch.seconds += time.perf_counter() - begin
        return found


def timed(denoiser: EngineDenoiser, watch: Stopwatch) -> EngineDenoiser:
    """Return the same denoiser with its engines timed by the stopwatch."""
    embeddings = {name: embedding.run_by(TimedEngine(embedding.engine, watch)) for name, embedding in denoiser.embeddings.items()}
    own = replace(denoiser, engine=TimedEngine(denoiser.engine, watch), embeddings=embeddings)
    return replace(own, reusing=timed(own.reusing, watch)) if isinstance(own, CutEngines) else own
