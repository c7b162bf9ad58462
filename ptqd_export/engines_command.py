"""`ptqd-export engines`: the engines of a bundle, built for this machine from its graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engines.backends.choice import engine_settings
from engines.bundle import Bundle
from engines.decoder import decoder_settings
from engines.errors import UsageError
from engines.progress import fraction_bar
from engines.tensorrt.backend import EngineSettings, engine_cache
from engines.tensorrt.cache import CachedEngine, EngineCache
from engines.tensorrt.flavour import FLAVOURS, FlavourName
from ptqd_export.tensorrt_checks import check_tensorrt_graph

DECODER = "decoder"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of a bundle: of a precision, or of the decoder."""

    name: str
    engine: CachedEngine


def build_engines(folder: Path, target: FlavourName | None = None) -> list[BuiltEngine]:
    """Build the engine of every precision and of the decoder, or find it where it was built before.

    Args:
        folder: of the bundle.
        target: flavour of TensorRT; None is the bundle's own.

    Raises:
        UsageError: there is no bundle, or its graphs are for another runtime.
        MissingBackendError: the flavour is not installed, or needs a device that is not there.
        PtqdError: TensorRT does not take a graph.
    """
    bundle = Bundle.open(folder)
    settings = engine_settings(bundle, target or _own_flavour(bundle))
    cache = engine_cache(folder, settings.flavour)
    built = [BuiltEngine(name, _build(name, bundle.verified_graph(name), settings, cache)) for name in bundle.manifest.precisions]
    decoder = bundle.manifest.model.decoder
    if decoder is not None:
        settings = decoder_settings(settings, decoder.batch)
        built.append(BuiltEngine(DECODER, _build(DECODER, bundle.graph(decoder.file), settings, cache)))
    return built


def _own_flavour(bundle: Bundle) -> FlavourName:
    name = bundle.manifest.target.name
    if name == "onnxruntime":
        raise UsageError(
            "The bundle's runtime builds no engines.",
            found=f"target {name}, which opens the graphs themselves",
            expected=" or ".join(FLAVOURS),
            mend="build a bundle with this target in its plan",
        )
    return name


def _build(name: str, graph: Path, settings: EngineSettings, cache: EngineCache) -> CachedEngine:
    check_tensorrt_graph(graph)
    with fraction_bar(f"{name} for {settings.flavour}") as show:
        return cache.get(settings.spec(graph), lambda progress: show(progress.fraction, progress.phase))


def print_engines(engines: list[BuiltEngine]) -> None:
    """Print what was built."""
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title="engines")
    for column in ("engine", "size", "seconds", "built", "file"):
        table.add_column(column, justify="right" if column in ("size", "seconds") else "left")
    for built in engines:
        engine = built.engine
        size = f"{engine.path.stat().st_size / 1e6:.2f} MB"
        table.add_row(built.name, size, f"{engine.seconds:.1f}", "before" if engine.from_cache else "now", engine.path.name)
    console.print(table)
