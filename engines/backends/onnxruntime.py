"""ONNX Runtime: on the CPU, the embedded default, or on an NVIDIA GPU."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.backends.weight_shift import SHIFT_BYTES, SHIFTED, WEIGHT_SHIFT, takes_shift
from engines.errors import MissingBackendError, PtqdError
from engines.machine import cores
from engines.timing import interleaved_medians

Mode = Literal["fast", "exact"]
Provider = Literal["CPU", "CUDA"]

_DTYPES: Mapping[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}

PIECE_VALUES = 1024
"""Values of the states in one piece of a batch. On a processor with 2 MiB of cache a core, W8A8 U-Nets run 128 states of 256 values in
pieces of 4 1.3 times as fast as in halves, and 16 states of 3072 values one by one 1.1 times as fast."""

_PROBE = Path(__file__).with_name("saturation_probe.onnx")
CONVOLUTION_PROBE = Path(__file__).with_name("convolution_probe.onnx")

_PROBE_ROUNDS = 7
"""Of a call that takes a fifth of a millisecond."""

_AS_ASKED_FOR = 1
"""The arena's way to grow, by number: `kSameAsRequested`."""

_EXACT_PRODUCTS: Mapping[str, str] = {"session.x64quantprecision": "1"}
"""Kernels that cannot saturate: slower, and only needed on processors whose 8-bit products are summed in 16 bits."""

_AS_WRITTEN: Mapping[str, str] = {"session.disable_quant_qdq": "1"}
"""Q/DQ nodes run as written, in float32: the reference that graphs are held against the torch oracle in."""

_NOT_AS_WRITTEN = ("ReluQuantRewrite",)
"""Optimizers that would change such graphs: this one drops a Relu in front of a QuantizeLinear whose zero is its lowest value, and takes
8-bit floats for such.
"""

_CHANNELS_LAST = ("NhwcTransformer", "TransposeOptimizer")
"""Optimizers that put transpositions around integer convolutions and then move them through the graph, where they end up on float values:
the kernels transpose 8-bit integers themselves, which is faster (a W8A8 U-Net of 36 million parameters: 5 % of a step), and the values are
the same.
"""


class OnnxRuntimeEngine(Engine):
    """One graph in an `onnxruntime.InferenceSession`.

    Batches are cut into pieces that run side by side, as many at a time as there are samples or threads, and the threads are shared out
    among them: the runtime's integer graphs hold single-threaded operators (transposes, dequantization), so that samples side by side are
    up to twice as fast as one batch on all threads. Each piece writes its rows of the result itself.

    Args:
        path: the ONNX file.
        mode: `fast` fuses Q/DQ into integer kernels, `exact` runs them as written.
        threads: that one call may use; None takes every core that the process may use.
        batch: samples of the calls to come, which decides on how many run side by side.
        optimized: where to write the graph as the runtime optimized it, for inspection.
        provider: on the GPU a call is one batch, through buffers that stay there.

    Raises:
        MissingBackendError: onnxruntime is not installed, or not with this provider.
        PtqdError: the runtime refuses the graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        mode: Mode = "fast",
        threads: int | None = None,
        batch: int = 1,
        optimized: Path | None = None,
        provider: Provider = "CPU",
    ) -> None:
        threads = threads or cores()
        self._workers = min(batch, threads) if provider == "CPU" else 1
        shift = preferred_shift() if mode == "fast" and provider == "CPU" and takes_shift(path) else 0
        self._session = open_session(path, _config(mode), threads // self._workers, optimized, provider, shift=shift)
        self._bound = BoundSession(self._session, "cuda") if provider == "CUDA" else None
        label = f"{path.stem} on ONNX Runtime"
        try:
            inputs = tuple(_spec(value, label) for value in self._session.get_inputs())
            outputs = tuple(_spec(value, label) for value in self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise PtqdError(f"{label} is no network.", found=f"a name that is no text: {error}", expected="names in UTF-8") from error
        if len(outputs) != 1 or not inputs:
            raise PtqdError(f"{label} is no network.", found=f"{len(inputs)} inputs, {len(outputs)} outputs", expected="one output")
        super().__init__(label, inputs, outputs[0])

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        try:
            return self._runs(feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise PtqdError(
                f"{self.label} failed.", found=error, mend="lower the batch size if memory is short, or rebuild the bundle"
            ) from error

    def _runs(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        if self._bound is not None:
            return self._bound.run(feeds)
        feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        out = np.empty((len(next(iter(feeds.values()))), *self.output.shape), dtype=np.float32)
        if self._workers == 1:
            self._infer(feeds, out)
            return out
        cuts = _cuts(len(out), self._workers, out[0].size)
        done = [_pool(self._workers).submit(self._infer, feeds, out, slice(*ends)) for ends in itertools.pairwise(cuts)]
        for piece in done:
            piece.result()
        return out

    def _infer(self, feeds: Mapping[str, NDArray[Any]], out: Float32, rows: slice = slice(None)) -> None:
        """Some rows of the batch, from and to where they lie."""
        _run_in_place(self._session, {name: value[rows] for name, value in feeds.items()}, self.output.name, out[rows])


def _run_in_place(session: Any, feeds: Mapping[str, NDArray[Any]], output: str, out: Float32, options: Any = None) -> None:
    """Run from and to where the arrays lie.

    Args:
        session: on the CPU.
        feeds: contiguous arrays by input.
        output: its name.
        out: contiguous, for all of it.
        options: of the run.
    """
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    binding.bind_output(output, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding, options)


def _cuts(batch: int, workers: int, values: int) -> list[int]:
    """Where a batch is cut: into as many pieces for every worker, each of so few samples that their activations stay in its cache.

    Args:
        batch: samples.
        workers: that take pieces, no more than samples.
        values: of one sample.
    """
    rounds = math.ceil(batch / (workers * max(1, PIECE_VALUES // values)))
    pieces = min(batch, workers * rounds)
    return [batch * piece // pieces for piece in range(pieces + 1)]


class BoundSession:
    """A session whose inputs and output lie in buffers of the device, kept from call to call as long as the batch stays.

    Args:
        session: with one output.
        device: `cuda`, or `cpu` where buffers are all that is wanted.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._values: dict[str, Any] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        ort, binding = _import(), self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self._upload(ort, name, value))
        (output,) = self._session.get_outputs()
        binding.bind_output(output.name, self._device)
        self._session.run_with_iobinding(binding)
        (out,) = binding.copy_outputs_to_cpu()
        return np.asarray(out, dtype=np.float32)

    def _upload(self, ort: Any, name: str, value: NDArray[Any]) -> Any:
        held = self._values.get(name)
        if held is None or tuple(held.shape()) != value.shape:
            held = self._values[name] = ort.OrtValue.ortvalue_from_numpy(value, self._device, 0)
        else:
            held.update_inplace(np.ascontiguousarray(value))
        return held


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """See `engines.backends.base.Backend`; the attributes are those of `OnnxRuntimeEngine`."""

    threads: int | None = None
    provider: Provider = "CPU"
    mode: Mode = "fast"

    def open(self, graph: Path, rows: int) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(graph, mode=self.mode, threads=self.threads, batch=rows, provider=self.provider)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """The threads that run pieces, the same for every engine of the process: engines take turns."""
    return ThreadPoolExecutor(workers, thread_name_prefix="ptqd-piece")


def _spec(value: Any, label: str) -> TensorSpec:
    if value.type not in _DTYPES or not value.shape:
        raise PtqdError(
            f"{label} is no network.",
            found=f"{value.name}: {value.type} {value.shape}",
            expected=f"{' or '.join(_DTYPES)} whose first axis is the batch",
        )
    return TensorSpec(value.name, _DTYPES[value.type], tuple(value.shape[1:]))


def check_provider(provider: Provider) -> None:
    """Open a small graph, to learn early what is missing.

    Raises:
        MissingBackendError: ONNX Runtime, the provider or its device is not there.
    """
    open_session(_PROBE, {}, provider=provider)


def open_session(
    path: Path,
    config: Mapping[str, str],
    threads: int = 1,
    optimized: Path | None = None,
    provider: Provider = "CPU",
    *,
    shift: int = 0,
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        path: the ONNX file.
        config: entries of the session's configuration.
        threads: that one call may use.
        optimized: where to write the graph as the runtime optimized it.
        provider: what runs it.
        shift: of the weights, for graphs that take one.

    Raises:
        MissingBackendError: onnxruntime is not installed, or not with this provider.
        PtqdError: the runtime refuses the graph.
    """
    ort = _import()
    wanted = f"{provider}ExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise _missing_provider(wanted, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # an idle engine's threads leave the cores to the next
    options.log_severity_level = 4  # what it would print of an error is in the exception too
    if provider == "CPU":
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if shift:
        values = np.full(SHIFT_BYTES, shift, dtype=np.int8)
        options.add_external_initializers([WEIGHT_SHIFT], [ort.OrtValue.ortvalue_from_numpy(values)])
    try:
        unwanted = _NOT_AS_WRITTEN if config == _AS_WRITTEN else _CHANNELS_LAST
        session = ort.InferenceSession(path, options, providers=[wanted], disabled_optimizers=unwanted)
    except Exception as error:  # onnxruntime's exceptions share no base class
        lacking = "NOT_IMPLEMENTED" in str(error)
        mend = "run it on the bundle's own target, which has kernels for its types" if lacking else "rebuild the bundle"
        raise PtqdError("ONNX Runtime refuses the graph.", found=f"{path}: {error}", mend=mend) from error
    if session.get_providers()[0] != wanted:  # the runtime falls back to the CPU by itself where the GPU's libraries do not load
        raise _missing_provider(wanted, session.get_providers())
    return session


@functools.cache
def _share_memory() -> None:
    """One arena for all sessions of the process: engines take turns, and so can their activations. It grows by what is asked for; an arena
    that doubles would keep its first piece for ever.
    """
    ort = _import()
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": _AS_ASKED_FOR}))


def release_activations() -> None:
    """Give the memory of activations back to the system: the arena keeps what the largest call so far has taken.

    A run can ask for it, of all that it does not hold itself: this one holds nothing, its input and output lie elsewhere.
    """
    options = _import().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = open_session(_PROBE, {})
    (output,) = session.get_outputs()
    x, out = np.ones((1, 64), dtype=np.float32), np.empty((1, 4), dtype=np.float32)
    _run_in_place(session, {"x": x}, output.name, out, options)


def _missing_provider(wanted: str, found: Sequence[str]) -> MissingBackendError:
    return MissingBackendError(
        f"ONNX Runtime has no {wanted} here.",
        found=", ".join(found),
        mend="pip install 'ptqd-export[gpu]' in an environment without the CPU package, on a machine with an NVIDIA GPU",
    )


def run_outputs(path: Path, feeds: Mapping[str, NDArray[Any]], mode: Mode = "fast", provider: Provider = "CPU") -> dict[str, NDArray[Any]]:
    """Every output of a graph by name, for graphs that have more than an engine's one."""
    session = open_session(path, _config(mode), cores(), provider=provider)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _config(mode: Mode) -> Mapping[str, str]:
    return _AS_WRITTEN if mode == "exact" else _fast_config()


@functools.cache
def _fast_config() -> Mapping[str, str]:
    """What keeps integer products exact on this processor: asked of the processor by a product that saturates, not of its name."""
    return _EXACT_PRODUCTS if saturates({}) else {}


@functools.cache
def preferred_shift() -> int:
    """The shift of weights with which integer convolutions are fastest on this processor: asked of the processor, as saturation is."""
    sessions = {shift: open_session(CONVOLUTION_PROBE, _fast_config(), shift=shift) for shift in (0, SHIFTED)}
    (x,) = next(iter(sessions.values())).get_inputs()
    feeds = {x.name: np.ones((1, *x.shape[1:]), dtype=np.float32)}
    calls = {str(shift): functools.partial(session.run, None, feeds) for shift, session in sessions.items()}
    seconds = interleaved_medians(calls, _PROBE_ROUNDS)
    return min(sessions, key=lambda shift: seconds[str(shift)])


def saturates(config: Mapping[str, str]) -> bool:
    """Whether uint8 x int8 products come out too small under a session configuration.

    See `tools/make_saturation_probe.py`: with inputs of one, the probe's result is 64, and about 32 where pairs of products saturate.
    """
    (out,) = open_session(_PROBE, config).run(None, {"x": np.ones((1, 64), dtype=np.float32)})
    return bool(np.abs(out - 64).max() > 0.5)


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError(
            "ONNX Runtime is not installed.", found=str(error), mend="pip install 'ptqd-export[cpu]' (or [gpu])"
        ) from error
    return onnxruntime
