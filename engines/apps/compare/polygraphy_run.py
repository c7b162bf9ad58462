"""Runs engines with Polygraphy: its runners, its streaming and its files. The only module that imports Polygraphy."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from engines.apps.compare.visits import Visit
from engines.arrays import Float32
from engines.backends.base import Engine
from engines.networks.engine_denoiser import EngineDenoiser

INPUTS, OUTPUTS = "inputs", "outputs"
"""Folders of saved iterations. `polygraphy run` takes the first as --load-inputs, and one network's folder in the second as
--load-outputs.
"""


class EngineRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy is untyped
    """A Polygraphy runner for an engine. It runs the very object that samples, whatever its backend, not Polygraphy's own loader."""

    def __init__(self, name: str, engine: Engine) -> None:
        super().__init__(name)
        self._engine = engine

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for spec in self._engine.inputs:
            metadata.add(spec.name, spec.dtype, (None, *spec.shape))
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, NDArray[Any]]) -> OrderedDict[str, Float32]:
        begin = time.perf_counter()
        out = self._engine.run(feed_dict)
        self.inference_time = time.perf_counter() - begin
        return OrderedDict([(self._engine.output.name, out)])


def run_engines(
    visited: Iterable[Visit], networks: Mapping[str, EngineDenoiser], save: Path | None
) -> Iterator[tuple[Visit, dict[str, Float32]]]:
    """Run every network at every visit.

    Args:
        visited: visits, consumed one at a time.
        networks: networks by name; all take the same inputs.
        save: new or empty folder for inputs and outputs, or None.

    Yields:
        Each visit with the output float32 [branches, batch, *shape] of every network, by name.
    """
    waiting = deque[Visit]()
    shaping = next(iter(networks.values()))

    def feeds() -> Iterator[dict[str, NDArray[Any]]]:
        for visit in visited:
            waiting.append(visit)
            yield shaping.feeds(visit.x, visit.timestep, visit.rows)

    runners = [EngineRunner(name, network.engine) for name, network in networks.items()]
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        inputs = None if save is None else str(save / INPUTS)
        for index, results in enumerate(Comparator.run(runners, feeds(), save_inputs_path=inputs, streaming=True)):
            if save is not None:
                _save_outputs(results, save / OUTPUTS, index)
            visit = waiting.popleft()
            yield visit, {name: _branches(results[name][0], visit) for name in networks}


def _save_outputs(results: RunResults, folder: Path, index: int) -> None:
    """Save each network to its own folder. In a file of several, `polygraphy run` compares each with the next, not with full precision."""
    for name, iterations in results:
        alone = RunResults()
        alone.append((name, iterations))
        (folder / name).mkdir(parents=True, exist_ok=True)
        alone.save(str(folder / name / f"{index:010d}.json"))


def _branches(outputs: Mapping[str, Any], visit: Visit) -> Float32:
    (out,) = outputs.values()
    return np.asarray(out, dtype=np.float32).reshape(-1, *visit.x.shape)
