"""Builds the TensorRT engine of a graph when the graph is opened, so that statistics are measured on the engines that will run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend, engine_cache


@dataclass(frozen=True)
class TargetEngines:
    """An `engines.backends.base.Backend`. Engines lie in the bundle's own cache, where sampling finds them.

    Attributes:
        settings: settings of the engines.
        folder: folder of the bundle.
    """

    settings: EngineSettings
    folder: Path

    def open(self, graph: Path, rows: int) -> Engine:
        """Open the engine of a graph, built now if it is missing.

        Raises:
            MissingBackendError: TensorRT or its device is missing.
            PtqdError: TensorRT refuses the graph.
        """
        engine_cache(self.folder, self.settings.flavour).get(self.settings.spec(graph))
        most = self.settings.profile.max
        return InBatches(self._backend.open(graph, min(rows, most)), most)

    @cached_property
    def _backend(self) -> TensorRtBackend:
        return TensorRtBackend(self.settings, self.folder)


class InBatches(Engine):
    """Runs a call in parts of at most `most` rows, the largest batch that an engine was built for."""

    def __init__(self, engine: Engine, most: int) -> None:
        super().__init__(engine.label, engine.inputs, engine.output, engine.kept)
        self._engine = engine
        self._most = most

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        rows = len(next(iter(feeds.values())))
        parts = [slice(begin, begin + self._most) for begin in range(0, rows, self._most)]
        found = [self._outputs({name: value[part] for name, value in feeds.items()}) for part in parts]
        return [np.concatenate(of_parts) for of_parts in zip(*found, strict=True)]

    def _outputs(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Float32, ...]:
        return (self._engine.run(feeds),) if self.kept is None else self._engine.run_keeping(feeds)
