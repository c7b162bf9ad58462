"""Open ONNX Runtime sessions that share memory and whose integer products are exact on this processor."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.backends.onnxruntime.weight_shift import SHIFT_BYTES, SHIFTED, WEIGHT_SHIFT, takes_shift
from engines.errors import MissingBackendError, PtqdError
from engines.host.timing import interleaved_medians
from engines.untrusted.external_data import graph_files, graph_of
from engines.untrusted.stored_tensors import StoredTensors, graph_taking, outside

Mode = Literal["fast", "exact", "optimized"]
"""`fast` fuses Q/DQ into integer kernels; `exact` runs them as written; `optimized` runs a graph that `fast` wrote on this machine."""

Provider = Literal["CPU", "CUDA"]

PROBE = Path(__file__).with_name("saturation_probe.onnx")
CONVOLUTION_PROBE = Path(__file__).with_name("convolution_probe.onnx")

_PROBE_ROUNDS = 7
"""Timing rounds of the convolution probe; one call takes a fifth of a millisecond."""

_AS_ASKED_FOR = 1
"""Number of the arena's growth strategy `kSameAsRequested`."""

_EXACT_PRODUCTS: Mapping[str, str] = {"session.x64quantprecision": "1"}
"""Selects kernels that cannot saturate. They are slower, and only needed on processors that sum 8-bit products in 16 bits."""

_FLOAT_BESIDE_BLOCKS: Mapping[str, str] = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Multiplies weights in blocks by float activations: the default kernel would round the activations to 8 bits."""

_AS_WRITTEN: Mapping[str, str] = {"session.disable_quant_qdq": "1"}
"""Runs Q/DQ nodes as written, in float32: the reference mode for comparing graphs with the torch oracle."""

_NOT_AS_WRITTEN = ("ReluQuantRewrite",)
"""Optimizers that would change graphs run as written. This one drops a Relu in front of a QuantizeLinear whose zero point is its lowest
value, and wrongly does so for 8-bit floats too.
"""

_FOLDER = "session.model_external_initializers_file_folder_path"
"""Setting that names the folder of the files beside a graph that is not loaded from its own file."""

_LARGE_BYTES = 2**30
"""Weights that take more than this in float32 are read from their mapped file wherever that is possible. It takes up to a fifth more time,
but copies that are packed or unpacked for the kernels would take as much memory as the float32 network.
"""

_IN_PLACE: Mapping[str, str] = {"session.disable_prepacking": "1"}
"""Multiplies by weights where they are, instead of by copies that are packed for the kernels."""

_UNPACKED_ONCE = ("ConstantFolding",)
"""Optimizer that unpacks the integer weights of a graph that runs as written once, when it is opened, instead of whenever they are used."""

_LEAST_OUTSIDE = 1024
"""Bytes of the smallest tensors of an optimized graph that lie in the file beside it."""

_CHANNELS_LAST = ("NhwcTransformer", "TransposeOptimizer")
"""Optimizers that put transposes around integer convolutions and then move them through the graph, where they end up on float values.
Without them the kernels transpose 8-bit integers themselves, with the same results and faster (5 % of a step for a W8A8 U-Net of 36 million
parameters).
"""


def check_provider(provider: Provider) -> None:
    """Open a small graph to find out early whether anything is missing.

    Raises:
        MissingBackendError: ONNX Runtime, the provider or its device is missing.
    """
    open_session(PROBE, {}, provider=provider)


def open_session(
    path: Path,
    config: Mapping[str, str],
    threads: int = 1,
    optimized: Path | None = None,
    provider: Provider = "CPU",
    profile: Path | None = None,
    *,
    as_it_is: bool = False,
    shift: int = 0,
    constants: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> Any:
    """Open an `onnxruntime.InferenceSession`.

    Args:
        path: path of the ONNX file.
        config: session configuration entries.
        threads: threads for one call.
        optimized: where to write the graph as optimized by the runtime, with its weights in a `.data` file beside it.
        provider: execution provider.
        profile: prefix of the file in which the runtime's profiler records the session's calls.
        as_it_is: whether to skip optimization, for a graph that the runtime has already optimized.
        shift: shift of the weights, for graphs that accept one.
        constants: values that the graph's constants of these names take; see `ReweightingBackend`.

    Raises:
        MissingBackendError: onnxruntime is not installed, or lacks this provider.
        PtqdError: the runtime refuses the graph.
    """
    ort = import_onnxruntime()
    wanted = f"{provider}ExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise _missing_provider(wanted, ort.get_available_providers())
    in_place = provider == "CPU" and not as_it_is and _is_large(path)
    options = _options(ort, {**config, **(_IN_PLACE if in_place and not _has_integers(path) else {})}, threads, provider)
    if as_it_is:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{optimized.name}.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(_LEAST_OUTSIDE))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    given: dict[str, NDArray[Any]] = {WEIGHT_SHIFT: np.full(SHIFT_BYTES, shift, dtype=np.int8)} if shift else {}
    try:
        model = _taking(path, constants, given, options)
        options.add_external_initializers(list(given), [ort.OrtValue.ortvalue_from_numpy(value) for value in given.values()])
        as_written = (*_NOT_AS_WRITTEN, *(_UNPACKED_ONCE if in_place else ()))
        unwanted = as_written if config == _AS_WRITTEN else _CHANNELS_LAST
        session = ort.InferenceSession(model, options, providers=[wanted], disabled_optimizers=unwanted)
    except Exception as error:  # onnxruntime's exceptions share no base class
        lacking = any(sign in str(error) for sign in ("NOT_IMPLEMENTED", "is not a registered function/op"))
        mend = "run it on the bundle's own target, which has kernels for its types" if lacking else "rebuild the bundle"
        raise PtqdError("ONNX Runtime refuses the graph.", found=f"{path}: {error}", mend=mend) from error
    if session.get_providers()[0] != wanted:  # the runtime silently falls back to the CPU if the GPU's libraries do not load
        raise _missing_provider(wanted, session.get_providers())
    return session


def _taking(path: Path, constants: Mapping[str, NDArray[Any]], given: dict[str, NDArray[Any]], options: Any) -> Path | bytes:
    """Return what to load: the file, or a graph that takes other constants, which go to `given` or lie in the graph itself."""
    if not constants:
        return path
    given |= {name: constants[name] for name in outside(StoredTensors(path), constants)}
    options.add_session_config_entry(_FOLDER, str(path.absolute().parent))
    return graph_taking(path, constants)


def _is_large(graph: Path) -> bool:
    """Return whether a graph has large weights in other files; an integer counts as four bytes."""
    stored = sum(file.stat().st_size for file in graph_files(graph)[1:])
    return stored > _LARGE_BYTES or (4 * stored > _LARGE_BYTES and _has_integers(graph))


def _has_integers(graph: Path) -> bool:
    """Return whether a graph with its weights in other files has integer weights. A piece of a network, which reads the whole graph's file,
    is answered for as the whole graph is: both must compute the same, in the same kernels.
    """
    wholes = {file.with_name(graph_of(file.name)) for file in graph_files(graph)[1:]}
    return any(b"DequantizeLinear" in one.read_bytes() for one in (graph, *wholes) if one.exists())


def _options(ort: Any, config: Mapping[str, str], threads: int, provider: Provider) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # an idle engine's threads leave the cores to the next engine
    options.log_severity_level = 4  # the exception contains everything that the runtime would log about an error
    if provider == "CPU":
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


@functools.cache
def _share_memory() -> None:
    """Create one arena for all sessions of the process: engines take turns, so their activations can share memory.

    The arena grows by exactly the size requested; one that doubles would keep its first piece forever.
    """
    ort = import_onnxruntime()
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": _AS_ASKED_FOR}))


def _missing_provider(wanted: str, found: Sequence[str]) -> MissingBackendError:
    return MissingBackendError(
        f"ONNX Runtime has no {wanted} on this machine.",
        found=", ".join(found),
        mend="pip install 'ptqd-export[gpu]' in an environment without the CPU package, on a machine with an NVIDIA GPU",
    )


def session_config(mode: Mode) -> Mapping[str, str]:
    return _AS_WRITTEN if mode == "exact" else _fast_config()


@functools.cache
def _fast_config() -> Mapping[str, str]:
    """Return the settings that keep integer products exact on this processor, determined by a probe rather than by the processor's name."""
    return {**_FLOAT_BESIDE_BLOCKS, **(_EXACT_PRODUCTS if saturates({}) else {})}


def shift_of(graph: Path, mode: Mode, provider: Provider = "CPU") -> int:
    """Return the weight shift with which a graph runs fastest on this processor; 0 if it does not run in integer kernels of the CPU."""
    return preferred_shift() if mode == "fast" and provider == "CPU" and takes_shift(graph) else 0


@functools.cache
def preferred_shift() -> int:
    """Return the weight shift with which integer convolutions are fastest on this processor, measured with a probe."""
    sessions = {shift: open_session(CONVOLUTION_PROBE, _fast_config(), shift=shift) for shift in (0, SHIFTED)}
    (x,) = next(iter(sessions.values())).get_inputs()
    feeds = {x.name: np.ones((1, *x.shape[1:]), dtype=np.float32)}
    calls = {str(shift): functools.partial(session.run, None, feeds) for shift, session in sessions.items()}
    seconds = interleaved_medians(calls, _PROBE_ROUNDS)
    return min(sessions, key=lambda shift: seconds[str(shift)])


def saturates(config: Mapping[str, str]) -> bool:
    """Whether uint8 x int8 products come out too small under a session configuration.

    With inputs of 1, the probe (`tools/probes/make_saturation_probe.py`) gives 64, or about 32 if pairs of products saturate.
    """
    (out,) = open_session(PROBE, config).run(None, {"x": np.ones((1, 64), dtype=np.float32)})
    return bool(np.abs(out - 64).max() > 0.5)


def import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError(
            "ONNX Runtime is not installed.", found=str(error), mend="pip install 'ptqd-export[cpu]' (or [gpu])"
        ) from error
    return onnxruntime
