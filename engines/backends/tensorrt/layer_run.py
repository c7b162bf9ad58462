"""Run a graph with several outputs on TensorRT, to inspect inner tensors: build an engine, run it once, and discard it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.backends.tensorrt.building.engine_builder import build_engine
from engines.backends.tensorrt.device.arena import Arena
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.tensorrt_backend import EngineSettings
from engines.backends.tensorrt.tensorrt_engine import OpenOptions, TensorRtEngine
from engines.terminal.progress import fraction_bar


def run_outputs(graph: Path, feeds: Mapping[str, NDArray[Any]], settings: EngineSettings) -> dict[str, NDArray[Any]]:
    """Run a graph once and return all outputs by name.

    Args:
        graph: path of the ONNX file.
        feeds: an array [batch, ...] for every input.
        settings: settings of the bundle's engines; this engine is built only for the batch size of the feeds.

    Raises:
        MissingBackendError: the flavour or a device is missing. Nothing is built then.
        PtqdError: TensorRT refuses the graph.
    """
    arena = Arena(Cuda())
    with tempfile.TemporaryDirectory() as folder:
        engine = TensorRtEngine(
            _built(graph, len(next(iter(feeds.values()))), settings, Path(folder)), settings.traits, arena, OpenOptions(cuda_graphs=False)
        )
        return engine.run_outputs(feeds)


def _built(graph: Path, rows: int, settings: EngineSettings, folder: Path) -> Path:
    """Build the engine of a graph for calls with `rows` rows; return its path."""
    path, spec = folder / f"{graph.stem}.engine", replace(settings, profile=BatchProfile(rows, rows, rows)).spec(graph)
    with fraction_bar(f"{graph.stem} for {settings.flavour}") as show:
        build_engine(spec, path, on_progress=lambda progress: show(progress.fraction, progress.phase))
    return path
