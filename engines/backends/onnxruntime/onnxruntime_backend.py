"""ONNX Runtime: on the CPU, the embedded default, or on an NVIDIA GPU."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
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
"""Values of the states in one piece of a batch. On a processor with 2 MiB of cache a core, W8A8 U-Nets run 128 states of 256 values in
pieces of 4 1.3 times as fast as in halves, and 16 states of 3072 values one by one 1.1 times as fast."""


class OnnxRuntimeEngine(Engine):
    """One graph in an `onnxruntime.InferenceSession`.

    Batches are cut into pieces that run side by side, as many at a time as there are samples or threads, and the threads are shared out
    among them: the runtime's integer graphs hold single-threaded operators (transposes, dequantization), so that samples side by side are
    up to twice as fast as one batch on all threads. Each piece writes its rows of the result itself.

    Args:
        path: the ONNX file.
        mode: what becomes of its Q/DQ nodes.
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
        own = threads // self._workers
        as_it_is, shift = mode == "optimized", shift_of(path, mode, provider)
        self._session = open_session(path, session_config(mode), own, optimized, provider, as_it_is=as_it_is, shift=shift)
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
        ort, binding = import_onnxruntime(), self._session.io_binding()
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


def mode_of(target: str, provider: Provider) -> Mode:
    """How ONNX Runtime runs the graphs of a target. Its fused kernels are for its own graphs on the CPU: another target's run faster as
    written (the W8A8 U-Net of the digits model: 29 ms against 43), because the weights are unpacked once, and closer to what was quantized.
    """
    return "fast" if target == "onnxruntime" and provider == "CPU" else "exact"


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """See `engines.backends.base.Backend`; the other attributes are those of `OnnxRuntimeEngine`.

    Attributes:
        optimized: where graphs lie that were optimized for this machine; None opens all graphs themselves.
    """

    threads: int | None = None
    provider: Provider = "CPU"
    mode: Mode = "fast"
    optimized: OptimizedGraphs | None = None

    def open(self, graph: Path, rows: int) -> OnnxRuntimeEngine:
        ready = None if self.optimized is None else self.optimized.find(graph)
        path, mode = (graph, self.mode) if ready is None else (ready, "optimized")
        engine = OnnxRuntimeEngine(path, mode=mode, threads=self.threads, batch=rows, provider=self.provider)
        release_free_pages()  # an optimized graph is not what was read: the C library keeps the memory of that
        return engine


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


def release_activations() -> None:
    """Give the memory of activations back to the system: the arena keeps what the largest call so far has taken.

    A run can ask for it, of all that it does not hold itself: this one holds nothing, its input and output lie elsewhere.
    """
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = open_session(PROBE, {})
    (output,) = session.get_outputs()
    x, out = np.ones((1, 64), dtype=np.float32), np.empty((1, 4), dtype=np.float32)
    _run_in_place(session, {"x": x}, output.name, out, options)


def run_outputs(path: Path, feeds: Mapping[str, NDArray[Any]], mode: Mode = "fast", provider: Provider = "CPU") -> dict[str, NDArray[Any]]:
    """Every output of a graph by name, for graphs that have more than an engine's one."""
    session = open_session(path, session_config(mode), cores(), provider=provider, shift=shift_of(path, mode, provider))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
