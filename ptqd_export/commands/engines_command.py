"""`ptqd-export engines`: builds the engines of a bundle for this machine from the bundle's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.apps.compare.engine_check import DepartureError
from engines.backends.cached_engine import CachedEngine
from engines.backends.choice import engine_settings, on_onnxruntime
from engines.backends.tensorrt.building.engine_cache import EngineCache
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.device.device_identity import LEAST_COMPUTE_CAPABILITY, check_precision
from engines.backends.tensorrt.flavour import FLAVOURS, FlavourName
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend, engine_cache
from engines.bundle.bundle import Bundle
from engines.errors import MissingBackendError, UsageError
from engines.host.interruption import keeping
from engines.networks.decoder import decoder_settings
from engines.networks.encoder import IMAGES_AT_ONCE
from engines.terminal.fitting_table import FittingTable, result_console
from engines.terminal.progress import fraction_bar
from ptqd_export.commands.built_engines_check import check_on
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.stages.finish.keep_optimized import DECODER, ENCODER, PREVIEW, BuiltEngine, engine_graphs, optimize_graphs, with_endings

AS_ITS_GRAPHS = "not checked against the statistics: these engines compute the same as the graphs that the statistics were measured with"


def build_engines(folder: Path, target: FlavourName | None = None) -> list[BuiltEngine]:
    """Build the engine of every precision and of the graphs beside them, or return it from the cache. For ONNX Runtime on the CPU, an
    engine is the graph as the runtime optimizes it for this machine.

    Args:
        folder: folder of the bundle.
        target: flavour of TensorRT; None is the bundle's own target.

    Raises:
        UsageError: there is no bundle, or its graphs are for another runtime.
        MissingBackendError: the flavour is not installed, or a device that it needs is missing.
        PtqdError: TensorRT refuses a graph, or another process is writing to the bundle.
    """
    bundle, kept = Bundle.open(folder), "finished engines are kept, and the next run builds the others"
    if _takes_optimized(bundle, target):
        with writing_to(folder), keeping(kept), fraction_bar("optimizing") as show:
            return optimize_graphs(bundle, lambda done, total: show(done / total, ""))
    settings = _settings(bundle, target)
    with writing_to(folder), keeping(kept):
        return _built(folder, bundle, settings)


def _takes_optimized(bundle: Bundle, target: FlavourName | None) -> bool:
    return target is None and on_onnxruntime(bundle).optimized is not None


def _built(folder: Path, bundle: Bundle, settings: EngineSettings) -> list[BuiltEngine]:
    cache = engine_cache(folder, settings.flavour)
    if not settings.traits.portable:
        for name in sorted(LEAST_COMPUTE_CAPABILITY.keys() & bundle.manifest.precisions.keys()):
            check_precision(name, Cuda())
    graphs, own, built = engine_graphs(bundle), dict[str, EngineSettings](), []
    for ending, one in with_endings(bundle).items():
        model = one.manifest.model
        own |= {f"{ENCODER}{ending}": decoder_settings(settings, IMAGES_AT_ONCE)}
        for name, decoder in ((DECODER, model.decoder), (PREVIEW, model.preview)):
            own |= {} if decoder is None else {f"{name}{ending}": decoder_settings(settings, decoder.batch)}
    for place, (name, graph) in enumerate(graphs.items(), start=1):
        label = f"{name} for {settings.flavour} ({place} of {len(graphs)})"
        built.append(BuiltEngine(name, _build(graph, label, own.get(name, settings), cache)))
    return built


def check_built(folder: Path, built: Sequence[BuiltEngine], target: FlavourName | None = None) -> str:
    """Check the engines against the bundle's statistics if there is a device to run them on. Returns the result as a sentence to print.

    Raises:
        DepartureError: the noise of an engine differs from the statistics. Its file is removed, so that nothing samples with it.
    """
    bundle = Bundle.open(folder)
    if _takes_optimized(bundle, target):
        return AS_ITS_GRAPHS
    settings = _settings(bundle, target)
    try:
        backend = TensorRtBackend(settings, folder)
    except MissingBackendError as error:
        reason = str(error).splitlines()[0]
        return f"not checked against the statistics: {reason} Run this again, or `ptqd-run compare`, on the machine that samples."
    try:
        departure = max(check_on(one, backend) for one in bundle.at_sizes)
    except DepartureError as error:
        for engine in built:
            if engine.precision == error.precision:
                engine.engine.path.unlink(missing_ok=True)
        raise
    return f"checked against the statistics: no SNR differs by more than {departure:.2f} dB"


def _settings(bundle: Bundle, target: FlavourName | None) -> EngineSettings:
    return engine_settings(bundle, target or _own_flavour(bundle))


def _own_flavour(bundle: Bundle) -> FlavourName:
    name = bundle.manifest.target.name
    if name == "onnxruntime":
        raise UsageError(
            "The bundle's runtime does not build engines.",
            found=f"target {name} on a GPU, which opens the graphs directly",
            expected=" or ".join(FLAVOURS),
            mend="build a bundle with one of these targets in its plan",
        )
    return name


def _build(graph: Path, label: str, settings: EngineSettings, cache: EngineCache) -> CachedEngine:
    check_tensorrt_graph(graph)
    with fraction_bar(label) as show:
        return cache.get(settings.spec(graph), lambda progress: show(progress.fraction, progress.phase))


def print_engines(engines: list[BuiltEngine]) -> None:
    """Print a table of the engines."""
    table = FittingTable("engines", ("engine", "size", "seconds", "built", "file"), left=("built", "file"), folded=("file",))
    for built in engines:
        engine = built.engine
        size = f"{engine.path.stat().st_size / 1e6:.2f} MB"
        table.add_row(built.name, size, f"{engine.seconds:.1f}", "before" if engine.from_cache else "now", engine.path.name)
    result_console().print(table)
