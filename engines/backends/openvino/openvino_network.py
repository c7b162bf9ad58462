"""Compile graphs with OpenVINO, with float32 arithmetic and exact integer products, and cache the result.

Processors without VNNI sum pairs of 8-bit products in 16 bits, and OpenVINO lets these sums saturate. A probe tests the processor once per
process. If its sums saturate, integer kernels are turned off, and graphs run in float32 as written, except those whose weights are so
narrow that nothing can saturate.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import KEPT
from engines.backends.openvino.narrow_weights import has_narrow_weights
from engines.backends.openvino.set_constants import set_constants
from engines.errors import MissingBackendError, PtqdError
from engines.host.files import replacing, sha256
from engines.host.room import NoRoomError
from engines.untrusted.external_data import graph_files
from engines.untrusted.plain_file import open_plain

DEVICE = "CPU"
PIECE_VALUES = 2**15
"""State values in one piece of a batch. On a processor with 2 MiB of cache per core, a W8A8 U-Net runs 1.07 times as fast on 32 states of
3072 values in pieces of 8 as in halves."""

_PROBE = Path(__file__).parents[1] / "onnxruntime" / "saturation_probe.onnx"

_SETTINGS: Mapping[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",  # otherwise float operators compute in bfloat16 on processors that support it
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # otherwise float inputs of integer weights get quantized: 4 dB of a DiT
    "ENABLE_CPU_PINNING": False,  # otherwise all processes pin their threads to the same first cores
}

_WITHOUT_INTEGERS: Mapping[str, Any] = {"LP_TRANSFORMS_MODE": False}
"""Runs Q/DQ nodes as written, in float32."""

_SEAL = hashlib.sha256().digest_size * 2


@dataclass(frozen=True)
class Calls:
    """The calls that a network is compiled for.

    Attributes:
        batch: rows per call.
        threads: threads for one call.
    """

    batch: int
    threads: int

    @property
    def workers(self) -> int:
        """Number of pieces that run in parallel."""
        return min(self.batch, self.threads)

    def piece_rows(self, values: int) -> int:
        """Return the rows per piece for rows of `values` values. Every worker gets the same number of pieces, up to `PIECE_VALUES` each."""
        share = math.ceil(self.batch / self.workers)
        return math.ceil(share / math.ceil(share / max(1, PIECE_VALUES // values)))

    @property
    def settings(self) -> dict[str, Any]:
        return {**_SETTINGS, "NUM_STREAMS": self.workers, "INFERENCE_NUM_THREADS": self.threads}


@dataclass(frozen=True, eq=False)
class CompiledNetwork:
    """A compiled network.

    Attributes:
        model: an `openvino.CompiledModel` whose inputs and outputs have as many rows as a piece.
        memory: memory that the model's weights may lie in, kept alive with the model.
    """

    model: Any
    memory: NDArray[np.uint8] | None = None


def open_network(
    path: Path, calls: Calls, kept: Path | None = None, constants: Mapping[str, NDArray[Any]] = MappingProxyType({})
) -> CompiledNetwork:
    """Compile a graph, or load what an earlier call compiled.

    Args:
        path: path of the ONNX file.
        calls: the calls to compile for.
        kept: cache file, mapped into memory if it matches the graph, the runtime and `calls`; otherwise it is written, if possible. Like
            any engine, it is specific to this machine, and as trustworthy as whoever wrote it.
        constants: values that the graph's constants of these names take, without a cache; see `ReweightingBackend`.

    Raises:
        MissingBackendError: OpenVINO is not installed.
        PtqdError: OpenVINO refuses the graph.
    """
    settings = calls.settings
    if kept is None:
        return CompiledNetwork(_compiled(path, calls, settings, constants))
    with _refusing(path):
        key = _key(path, calls, settings)
    content = _read(kept, key)
    if content is not None:
        with _refusing(kept):
            return CompiledNetwork(_core().import_model(_import().Tensor(content, shared_memory=True), DEVICE, settings), content)
    model = _compiled(path, calls, settings)
    _write(kept, key, model.export_model().getbuffer())
    return CompiledNetwork(model)


def compile_outputs(path: Path, threads: int) -> Any:
    """Compile a graph with several outputs for any batch size."""
    settings = Calls(1, threads).settings
    with _refusing(path):
        model = _core().read_model(path)
        return _core().compile_model(model, DEVICE, {**settings, **_exact_products(model)})


def _compiled(path: Path, calls: Calls, settings: Mapping[str, Any], constants: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> Any:
    with _refusing(path):
        model = _core().read_model(path)
        if constants:
            set_constants(_import(), model, constants)
        (shape, *_) = (_row(port) for port in model.outputs)
        rows = calls.piece_rows(math.prod(shape))
        model.reshape({name_of(port): [rows, *_row(port)] for port in model.inputs})
        network = _core().compile_model(model, DEVICE, {**settings, **_exact_products(model)})
        if any(port.partial_shape.is_dynamic or port.shape[0] != rows for port in network.outputs):
            raise ValueError(f"outputs {', '.join(str(port.partial_shape) for port in network.outputs)} of {rows} rows")
        return network


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except PtqdError:
        raise
    except Exception as error:  # openvino raises RuntimeError and whatever pybind11 translates other exceptions to
        raise PtqdError(
            "OpenVINO refuses the graph.", found=f"{path}: {error}", mend="run it on the bundle's own target, or rebuild the bundle"
        ) from error


def name_of(port: Any) -> str:
    """Return the name of an input or output in the graph. A tensor may have additional names from other nodes that pass it on."""
    node = port.get_node()
    if node.get_type_name() != "Parameter" and KEPT in port.get_names():
        return KEPT
    return str(node.friendly_name if node.get_type_name() == "Parameter" else port.any_name)


def _row(port: Any) -> list[int]:
    return [size.get_length() for size in list(port.partial_shape)[1:]]


def _exact_products(model: Any) -> Mapping[str, Any]:
    """Return the settings that keep a graph's integer products exact on this processor."""
    return _WITHOUT_INTEGERS if sums_saturate() and not has_narrow_weights(model) else {}


@functools.cache
def sums_saturate() -> bool:
    """Whether this processor's sums saturate, determined by a probe rather than by the processor's name."""
    return saturates({})


def saturates(settings: Mapping[str, Any]) -> bool:
    """Whether uint8 x int8 products come out too small; see `engines.backends.onnxruntime.onnxruntime_session.saturates`."""
    network = _core().compile_model(_core().read_model(_PROBE), DEVICE, {**_SETTINGS, **settings})
    out = network({"x": np.ones((1, 64), dtype=np.float32)})[0]
    return bool(np.abs(out - 64).max() > 0.5)


def _key(path: Path, calls: Calls, settings: Mapping[str, Any]) -> bytes:
    """Return a key of everything that a compiled network depends on."""
    parts = {
        "graph": [sha256(file) for file in graph_files(path)],
        "openvino": _import().__version__,
        "processor": _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"),
        "batch": calls.batch,
        "piece": PIECE_VALUES,
        "settings": {**settings, "saturates": sums_saturate()},
    }
    return json.dumps(parts, sort_keys=True).encode()


def _read(kept: Path, key: bytes) -> NDArray[np.uint8] | None:
    """Return the content after the seal, mapped from the file, if the seal matches the key and the content; otherwise None."""
    try:
        with open_plain(kept) as file:
            content = np.memmap(file, dtype=np.uint8, mode="c")  # the runtime accepts only writable arrays
    except (OSError, ValueError):  # missing or empty
        return None
    return content[_SEAL:] if content[:_SEAL].tobytes() == _seal(key, content[_SEAL:].data) else None


def _write(kept: Path, key: bytes, content: memoryview) -> None:
    """Write the cache file if possible. Failure only makes the next opening slower: the bundle may be read-only, or the disk full."""
    with contextlib.suppress(OSError, NoRoomError), replacing(kept) as temporary, temporary.open("wb") as file:
        file.write(_seal(key, content))
        file.write(content)


def _seal(key: bytes, content: memoryview) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.hexdigest().encode()


@functools.cache
def _core() -> Any:
    return _import().Core()


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingBackendError("OpenVINO is not installed.", found=str(error), mend="pip install 'ptqd-export[openvino]'") from error
    return openvino
