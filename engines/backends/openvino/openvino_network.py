"""A graph as OpenVINO compiles it: in float32 where it is not in integers, with integer products that are exact, kept for the next time.

Processors without VNNI sum pairs of 8-bit products in 16 bits, and OpenVINO uses them so: a probe asks the processor, once a process. Where
its sums saturate, integer kernels are turned off, and graphs run in float32 as they are written.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import MissingBackendError, PtqdError
from engines.host.files import replacing, sha256
from engines.host.room import NoRoomError
from engines.untrusted.external_data import graph_files
from engines.untrusted.plain_file import open_plain

DEVICE = "CPU"
PIECE_VALUES = 2**15
"""Values of the states in one piece of a batch. On a processor with 2 MiB of cache a core, a W8A8 U-Net runs 32 states of 3072 values in
pieces of 8 1.07 times as fast as in halves."""

_PROBE = Path(__file__).parents[1] / "onnxruntime" / "saturation_probe.onnx"

_SETTINGS: Mapping[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",  # else float operators compute in bfloat16 where the processor does
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else it quantizes inputs that the graph does not, where weights are integers: 4 dB of a DiT
    "ENABLE_CPU_PINNING": False,  # else every process pins its threads to the first cores that it may use, and so do its neighbours
}

_WITHOUT_INTEGERS: Mapping[str, Any] = {"LP_TRANSFORMS_MODE": False}
"""Q/DQ nodes run as written, in float32."""

_SEAL = hashlib.sha256().digest_size * 2


@dataclass(frozen=True)
class Calls:
    """What a network is compiled for.

    Attributes:
        batch: rows of a call.
        threads: that it may use.
    """

    batch: int
    threads: int

    @property
    def workers(self) -> int:
        """Pieces that run side by side."""
        return min(self.batch, self.threads)

    def piece_rows(self, values: int) -> int:
        """Rows of a piece: as many pieces for every worker, of no more than `PIECE_VALUES`, where a row has so many values."""
        share = math.ceil(self.batch / self.workers)
        return math.ceil(share / math.ceil(share / max(1, PIECE_VALUES // values)))

    @property
    def settings(self) -> dict[str, Any]:
        return {**_SETTINGS, **_exact_products(), "NUM_STREAMS": self.workers, "INFERENCE_NUM_THREADS": self.threads}


@dataclass(frozen=True, eq=False)
class Network:
    """A compiled network.

    Attributes:
        model: an `openvino.CompiledModel` whose inputs and outputs have the rows of a piece.
        memory: that its weights may lie in, and that lives as long.
    """

    model: Any
    memory: NDArray[np.uint8] | None = None


def open_network(path: Path, calls: Calls, kept: Path | None = None) -> Network:
    """Compile a graph, or take what an earlier call compiled.

    Args:
        path: the ONNX file.
        calls: that it is for.
        kept: the compiled network of an earlier call, mapped into memory where it is of this very graph, runtime and `calls`; else it is
            written, as far as it can be. Like any engine it is this machine's, and as trustworthy as who wrote it.

    Raises:
        MissingBackendError: OpenVINO is not installed.
        PtqdError: it refuses the graph.
    """
    settings = calls.settings
    if kept is None:
        return Network(_compiled(path, calls, settings))
    with _refusing(path):
        key = _key(path, calls, settings)
    content = _read(kept, key)
    if content is not None:
        with _refusing(kept):
            return Network(_core().import_model(_import().Tensor(content, shared_memory=True), DEVICE, settings), content)
    model = _compiled(path, calls, settings)
    _write(kept, key, model.export_model().getbuffer())
    return Network(model)


def compile_outputs(path: Path, threads: int) -> Any:
    """A network of any batch, for graphs that have more than one output."""
    settings = Calls(1, threads).settings
    with _refusing(path):
        return _core().compile_model(_core().read_model(path), DEVICE, settings)


def _compiled(path: Path, calls: Calls, settings: Mapping[str, Any]) -> Any:
    with _refusing(path):
        model = _core().read_model(path)
        (shape, *_) = (_row(port) for port in model.outputs)
        rows = calls.piece_rows(math.prod(shape))
        model.reshape({name_of(port): [rows, *_row(port)] for port in model.inputs})
        network = _core().compile_model(model, DEVICE, dict(settings))
        if any(port.partial_shape.is_dynamic or port.shape[0] != rows for port in network.outputs):
            raise ValueError(f"outputs {', '.join(str(port.partial_shape) for port in network.outputs)} of {rows} rows")
        return network


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except PtqdError:
        raise
    except Exception as error:  # openvino raises RuntimeError and what pybind11 makes of others
        raise PtqdError(
            "OpenVINO refuses the graph.", found=f"{path}: {error}", mend="run it on the bundle's own target, or rebuild the bundle"
        ) from error


def name_of(port: Any) -> str:
    """Of an input or output in the graph. The tensor of an input has also the names of what it is passed on as."""
    node = port.get_node()
    return str(node.friendly_name if node.get_type_name() == "Parameter" else port.any_name)


def _row(port: Any) -> list[int]:
    return [size.get_length() for size in list(port.partial_shape)[1:]]


@functools.cache
def _exact_products() -> Mapping[str, Any]:
    """What keeps integer products exact on this processor: asked of the processor by a product that saturates, not of its name."""
    return _WITHOUT_INTEGERS if saturates({}) else {}


def saturates(settings: Mapping[str, Any]) -> bool:
    """Whether uint8 x int8 products come out too small; see `engines.backends.onnxruntime.onnxruntime_session.saturates`."""
    network = _core().compile_model(_core().read_model(_PROBE), DEVICE, {**_SETTINGS, **settings})
    out = network({"x": np.ones((1, 64), dtype=np.float32)})[0]
    return bool(np.abs(out - 64).max() > 0.5)


def _key(path: Path, calls: Calls, settings: Mapping[str, Any]) -> bytes:
    """Everything that a compiled network depends on."""
    parts = {
        "graph": [sha256(file) for file in graph_files(path)],
        "openvino": _import().__version__,
        "processor": _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"),
        "batch": calls.batch,
        "piece": PIECE_VALUES,
        "settings": dict(settings),
    }
    return json.dumps(parts, sort_keys=True).encode()


def _read(kept: Path, key: bytes) -> NDArray[np.uint8] | None:
    """What follows the seal, where file and key are those that were sealed; the array is the file."""
    try:
        with open_plain(kept) as file:
            content = np.memmap(file, dtype=np.uint8, mode="c")  # the runtime takes no array that cannot be written to
    except (OSError, ValueError):  # not there, or empty
        return None
    return content[_SEAL:] if content[:_SEAL].tobytes() == _seal(key, content[_SEAL:].data) else None


def _write(kept: Path, key: bytes, content: memoryview) -> None:
    """Without it the next opening takes longer, and that is all: a bundle may lie where nobody can write, or no room is."""
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
