"""The OpenVINO backend on the CPU: chosen by name, for machines where its integer kernels are faster than ONNX Runtime's."""

from __future__ import annotations

import functools
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec, output_and_kept
from engines.backends.openvino.openvino_network import Calls, compile_outputs, name_of, open_network
from engines.errors import PtqdError
from engines.host.machine import cores

_DTYPES = (np.dtype(np.float32), np.dtype(np.int64))


class OpenVinoEngine(Engine):
    """One graph, compiled for pieces of a batch with a fixed number of rows.

    Pieces run in parallel, up to one per row or thread, and the threads are divided among them. A network compiled for one shape takes 0.5
    to 0.9 of the time of one compiled for any shape. The last piece is padded with its own last row, so a call may have any number of rows;
    an incomplete piece takes as long as a full one. A row's result is identical to the bit in every piece, whatever the other rows; engines
    opened for other batch sizes may round differently.

    Integer products are exact: see `engines.backends.openvino.openvino_network`.

    Args:
        path: path of the ONNX file.
        threads: threads for one call; None uses every core that the process may use.
        batch: rows per call.
        kept: file that caches the compiled network, see `open_network`; None for no cache.
        constants: values that the graph's constants of these names take; see `ReweightingBackend`.

    Raises:
        MissingBackendError: OpenVINO is not installed.
        PtqdError: OpenVINO refuses the graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        batch: int = 1,
        kept: Path | None = None,
        constants: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        calls = Calls(batch, threads or cores())
        self._network, label = open_network(path, calls, kept, constants), f"{path.stem} on OpenVINO"
        model = self._network.model
        inputs, outputs = (tuple(_spec(port, label) for port in ports) for ports in (model.inputs, model.outputs))
        super().__init__(label, inputs, *output_and_kept(outputs, inputs, label))
        self._rows = model.outputs[0].shape[0]
        self._workers = calls.workers
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(calls.workers):
            self._idle.put(model.create_infer_request())

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        try:
            return self._runs([np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs])
        except Exception as error:  # openvino raises RuntimeError and whatever pybind11 translates other exceptions to
            raise PtqdError(f"{self.label} failed.", found=error, mend="lower the batch size if memory is short") from error

    def _runs(self, values: Sequence[NDArray[Any]]) -> list[Float32]:
        specs = [spec for spec in (self.output, self.kept) if spec is not None]
        outs = [np.empty((len(values[0]), *spec.shape), dtype=np.float32) for spec in specs]
        pieces = [slice(begin, begin + self._rows) for begin in range(0, len(outs[0]), self._rows)]
        left = iter(pieces)
        helpers = [_pool(self._workers - 1).submit(self._infer, values, outs, left) for _ in pieces[1 : self._workers]]
        self._infer(values, outs, left)
        for helper in helpers:
            helper.result()
        return outs

    def _infer(self, values: Sequence[NDArray[Any]], outs: Sequence[Float32], left: Iterator[slice]) -> None:
        """Run pieces of the batch until none is left. The results lie in the runtime's own memory, so they are copied to `outs`."""
        request = self._idle.get()
        try:
            for piece in left:
                given = [_filled(value[piece], self._rows) for value in values]
                results = request.infer(given, share_inputs=True, share_outputs=True)
                for index, out in enumerate(outs):
                    out[piece] = results[index][: len(out[piece])]
        finally:
            self._idle.put(request)


@dataclass(frozen=True)
class OpenVinoBackend:
    """An `engines.backends.base.ReweightingBackend`.

    Attributes:
        threads: see `OpenVinoEngine`.
        folder: folder that caches compiled networks, one file per graph, created when the first is written; None for no cache.
    """

    threads: int | None = None
    folder: Path | None = None

    def open(self, graph: Path, rows: int) -> OpenVinoEngine:
        kept = None if self.folder is None else self.folder / f"{graph.stem}.compiled"
        return OpenVinoEngine(graph, threads=self.threads, batch=rows, kept=kept)

    def open_with(self, graph: Path, rows: int, constants: Mapping[str, NDArray[Any]]) -> OpenVinoEngine:
        return OpenVinoEngine(graph, threads=self.threads, batch=rows, constants=constants)


def run_outputs(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a graph that has several outputs, unlike an engine, and return each output under each of its names."""
    network = compile_outputs(path, cores())
    results = network(dict(feeds))
    return {name: np.array(results[port]) for port in network.outputs for name in port.names}


def _filled(value: NDArray[Any], rows: int) -> NDArray[Any]:
    """Pad a piece to `rows` rows by repeating its last row."""
    return value if len(value) == rows else np.concatenate([value, np.repeat(value[-1:], rows - len(value), axis=0)])


@functools.cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    """Return the threads that run pieces beside the calling thread. All engines of the process share them, since engines take turns.

    A request that a thread runs itself begins at once; a request queued in the runtime waits for one of the runtime's threads to wake up
    (eight guided images of the digits model: 8.8 ms instead of 13.6).
    """
    return ThreadPoolExecutor(helpers, thread_name_prefix="ptqd-openvino")


def _spec(port: Any, label: str) -> TensorSpec:
    dtype = np.dtype(port.element_type.to_dtype())
    if dtype not in _DTYPES:
        raise PtqdError(f"{label} is not a network.", found=f"{name_of(port)}: {dtype}", expected=" or ".join(map(str, _DTYPES)))
    return TensorSpec(name_of(port), dtype, tuple(port.shape)[1:])
