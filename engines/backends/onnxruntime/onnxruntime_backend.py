"""The ONNX Runtime backend: on the CPU, the default for embedded use, or on an NVIDIA GPU."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec, output_and_kept
from engines.backends.onnxruntime.onnxruntime_session import (
    PROBE,
    Mode,
    Provider,
    import_onnxruntime,
    open_session,
    session_config,
    shift_of,
)
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.errors import PtqdError
from engines.host.heap import release_free_pages
from engines.host.machine import cores

_DTYPES: Mapping[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}

PIECE_VALUES = 1024
"""State values in one piece of a batch. On a processor with 2 MiB of cache per core, W8A8 U-Nets run 1.3 times as fast on 128 states of 256
values in pieces of 4 as in halves, and 1.1 times as fast on 16 states of 3072 values one by one."""


class OnnxRuntimeEngine(Engine):
    """One graph in an `onnxruntime.InferenceSession`.

    A batch is cut into pieces that run in parallel, up to one per sample or thread, and the threads are divided among them. The runtime's
    integer graphs contain single-threaded operators (transposes, dequantization), so samples in parallel are up to twice as fast as one
    batch on all threads. Each piece writes its own rows of the result.

    Args:
        path: path of the ONNX file.
        mode: how to run the graph's Q/DQ nodes.
        threads: threads for one call; None uses every core that the process may use.
        batch: samples per call, which determines how many pieces run in parallel.
        optimized: where to write the graph as optimized by the runtime, for inspection.
        provider: execution provider; on the GPU, a call runs as one batch with buffers that stay on the device.
        constants: values that the graph's constants of these names take; see `ReweightingBackend`.

    Raises:
        MissingBackendError: onnxruntime is not installed, or lacks this provider.
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
        constants: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        threads = threads or cores()
        self._workers = min(batch, threads) if provider == "CPU" else 1
        own = threads // self._workers
        as_it_is, shift = mode == "optimized", shift_of(path, mode, provider)
        self._reopen = functools.partial(
            open_session, path, session_config(mode), own, provider=provider, as_it_is=as_it_is, shift=shift, constants=constants
        )
        self._session = self._reopen(optimized=optimized)
        self._bound = BoundSession(self._session, "cuda") if provider == "CUDA" else None
        label = f"{path.stem} on ONNX Runtime"
        try:
            inputs = tuple(_spec(value, label) for value in self._session.get_inputs())
            outputs = tuple(_spec(value, label) for value in self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise PtqdError(f"{label} is not a network.", found=f"a name that is not text: {error}", expected="names in UTF-8") from error
        super().__init__(label, inputs, *output_and_kept(outputs, inputs, label))

    def watched(self, prefix: Path) -> OnnxRuntimeEngine:
        """Return an engine that runs the same kernels in a second session, on the CPU, watched by the runtime's profiler.

        Args:
            prefix: prefix of the profile's path.
        """
        engine = copy.copy(self)
        engine._session = self._reopen(profile=prefix)
        return engine

    def end_profiling(self) -> Path:
        """Write the profile of an engine from `watched`, a JSON list of events, and return its path."""
        return Path(self._session.end_profiling())

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        try:
            return self._runs(feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise PtqdError(
                f"{self.label} failed.", found=error, mend="lower the batch size if memory is short, or rebuild the bundle"
            ) from error

    def _runs(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        if self._bound is not None:
            return self._bound.run(feeds)
        feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        batch, specs = len(next(iter(feeds.values()))), [spec for spec in (self.output, self.kept) if spec is not None]
        outs = {spec.name: np.empty((batch, *spec.shape), dtype=np.float32) for spec in specs}
        if self._workers == 1:
            self._infer(feeds, outs)
        else:
            cuts = _cuts(batch, self._workers, math.prod(self.output.shape))
            done = [_pool(self._workers).submit(self._infer, feeds, outs, slice(*ends)) for ends in itertools.pairwise(cuts)]
            for piece in done:
                piece.result()
        return [*outs.values()]

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outs: Mapping[str, Float32], rows: slice = slice(None)) -> None:
        """Run some rows of the batch, reading and writing the arrays in place."""
        of_rows = ({name: value[rows] for name, value in arrays.items()} for arrays in (feeds, outs))
        _run_in_place(self._session, *of_rows)


def _run_in_place(session: Any, feeds: Mapping[str, NDArray[Any]], outs: Mapping[str, Float32], options: Any = None) -> None:
    """Run a session without copying its inputs and outputs.

    Args:
        session: session on the CPU.
        feeds: contiguous arrays by input name.
        outs: contiguous arrays that receive the whole outputs, by output name.
        options: run options, or None.
    """
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    for name, out in outs.items():
        binding.bind_output(name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
    session.run_with_iobinding(binding, options)


def _cuts(batch: int, workers: int, values: int) -> list[int]:
    """Return the offsets at which to cut a batch. Every worker gets the same number of pieces, each small enough for its cache.

    Args:
        batch: number of samples.
        workers: number of workers, at most `batch`.
        values: number of values in one sample.
    """
    rounds = math.ceil(batch / (workers * max(1, PIECE_VALUES // values)))
    pieces = min(batch, workers * rounds)
    return [batch * piece // pieces for piece in range(pieces + 1)]


class BoundSession:
    """A session with its inputs and outputs in device buffers, reused while the batch size stays the same.

    Args:
        session: session.
        device: `cuda`, or `cpu` to use only the buffers.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._values: dict[str, Any] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        """Run a batch and return the outputs in the order of the graph."""
        ort, binding = import_onnxruntime(), self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self._upload(ort, name, value))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, self._device)
        self._session.run_with_iobinding(binding)
        return [np.asarray(out, dtype=np.float32) for out in binding.copy_outputs_to_cpu()]

    def _upload(self, ort: Any, name: str, value: NDArray[Any]) -> Any:
        held = self._values.get(name)
        if held is None or tuple(held.shape()) != value.shape:
            held = self._values[name] = ort.OrtValue.ortvalue_from_numpy(value, self._device, 0)
        else:
            held.update_inplace(np.ascontiguousarray(value))
        return held


def mode_of(target: str, provider: Provider) -> Mode:
    """Return the mode in which ONNX Runtime runs the graphs of a target.

    Its fused kernels suit only its own graphs on the CPU. Another target's graphs run faster as written (the W8A8 U-Net of the digits
    model: 29 ms instead of 43), because the weights are unpacked only once, and closer to what was quantized.
    """
    return "fast" if target == "onnxruntime" and provider == "CPU" else "exact"


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """An `engines.backends.base.ReweightingBackend`; the other attributes are those of `OnnxRuntimeEngine`.

    Attributes:
        optimized: graphs optimized for this machine, opened instead of the originals where they exist; None always opens the originals.
    """

    threads: int | None = None
    provider: Provider = "CPU"
    mode: Mode = "fast"
    optimized: OptimizedGraphs | None = None

    def open(self, graph: Path, rows: int) -> OnnxRuntimeEngine:
        ready = None if self.optimized is None else self.optimized.find(graph)
        path, mode = (graph, self.mode) if ready is None else (ready, "optimized")
        engine = OnnxRuntimeEngine(path, mode=mode, threads=self.threads, batch=rows, provider=self.provider)
        release_free_pages()  # the C library would keep the memory of the graph as it was before optimization
        return engine

    def open_with(self, graph: Path, rows: int, constants: Mapping[str, NDArray[Any]]) -> OnnxRuntimeEngine:
        engine = OnnxRuntimeEngine(graph, mode=self.mode, threads=self.threads, batch=rows, provider=self.provider, constants=constants)
        release_free_pages()
        return engine


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Return the threads that run pieces. All engines of the process share them, since engines take turns."""
    return ThreadPoolExecutor(workers, thread_name_prefix="ptqd-piece")


def _spec(value: Any, label: str) -> TensorSpec:
    if value.type not in _DTYPES or not value.shape:
        raise PtqdError(
            f"{label} is not a network.",
            found=f"{value.name}: {value.type} {value.shape}",
            expected=f"{' or '.join(_DTYPES)} with the batch as its first axis",
        )
    return TensorSpec(value.name, _DTYPES[value.type], tuple(value.shape[1:]))


def release_activations() -> None:
    """Return the memory of activations, and of the weights of closed engines, to the system: otherwise the arena keeps what it once had.

    A run can be set to release all arena memory that it does not use itself. This run uses none: its input and output lie elsewhere.
    """
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = open_session(PROBE, {})
    (output,) = session.get_outputs()
    x, out = np.ones((1, 64), dtype=np.float32), np.empty((1, 4), dtype=np.float32)
    _run_in_place(session, {"x": x}, {output.name: out}, options)


def run_outputs(path: Path, feeds: Mapping[str, NDArray[Any]], mode: Mode = "fast", provider: Provider = "CPU") -> dict[str, NDArray[Any]]:
    """Run a graph that has several outputs, unlike an engine, and return the outputs by name."""
    session = open_session(path, session_config(mode), cores(), provider=provider, shift=shift_of(path, mode, provider))
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    del session
    release_free_pages()  # the C library would keep the memory of the session
    return found
