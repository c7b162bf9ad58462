"""ONNX Runtime: on the CPU, the embedded default, or on an NVIDIA GPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.errors import MissingBackendError, PtqdError
from engines.machine import cores

Mode = Literal["fast", "exact"]
Provider = Literal["CPU", "CUDA"]

_DTYPES: Mapping[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}

_PROBE = Path(__file__).with_name("saturation_probe.onnx")

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

    Batches are cut into shards that run side by side, as many as there are samples or threads, and the threads are shared out among
    them: the runtime's integer graphs hold single-threaded operators (transposes, dequantization), so that samples side by side are up
    to twice as fast as one batch on all threads.

    Args:
        path: the ONNX file.
        mode: `fast` fuses Q/DQ into integer kernels, `exact` runs them as written.
        threads: that one call may use; None takes every core that the process may use.
        batch: samples of the calls to come, which decides on the shards.
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
        self._shards = min(batch, threads) if provider == "CPU" else 1
        self._session = open_session(path, _config(mode), threads // self._shards, optimized, provider)
        self._bound = BoundSession(self._session, "cuda") if provider == "CUDA" else None
        inputs = tuple(_spec(value) for value in self._session.get_inputs())
        (output,) = (_spec(value) for value in self._session.get_outputs())
        super().__init__(f"{path.stem} on ONNX Runtime", inputs, output)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        if self._bound is not None:
            return self._bound.run(feeds)
        if self._shards == 1:
            return self._infer(feeds)
        batch = len(next(iter(feeds.values())))
        cuts = [batch * shard // self._shards for shard in range(self._shards + 1)]
        shards = [{name: value[low:high] for name, value in feeds.items()} for low, high in itertools.pairwise(cuts) if low < high]
        return np.concatenate(list(_workers(self._shards).map(self._infer, shards)))

    def _infer(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        (out,) = self._session.run(None, dict(feeds))
        return np.asarray(out, dtype=np.float32)


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
def _workers(count: int) -> ThreadPoolExecutor:
    """The threads that run shards, the same for every engine of the process: engines take turns."""
    return ThreadPoolExecutor(count, thread_name_prefix="ptqd-shard")


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, _DTYPES[value.type], tuple(value.shape[1:]))


def check_provider(provider: Provider) -> None:
    """Open a small graph, to learn early what is missing.

    Raises:
        MissingBackendError: ONNX Runtime, the provider or its device is not there.
    """
    open_session(_PROBE, {}, provider=provider)


def open_session(path: Path, config: Mapping[str, str], threads: int = 1, optimized: Path | None = None, provider: Provider = "CPU") -> Any:
    ort = _import()
    wanted = f"{provider}ExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise _missing_provider(wanted, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # an idle engine's threads leave the cores to the next
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
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
