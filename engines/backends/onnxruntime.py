"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.errors import MissingBackendError, PtqdError
from engines.machine import cores

Mode = Literal["fast", "exact"]

_DTYPES: Mapping[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}

_PROBE = Path(__file__).with_name("saturation_probe.onnx")

_EXACT_PRODUCTS: Mapping[str, str] = {"session.x64quantprecision": "1"}
"""Kernels that cannot saturate: slower, and only needed on processors whose 8-bit products are summed in 16 bits."""

_AS_WRITTEN: Mapping[str, str] = {"session.disable_quant_qdq": "1"}
"""Q/DQ nodes run as written, in float32: the reference that graphs are held against the torch oracle in."""


class OnnxRuntimeEngine(Engine):
    """One graph in an `onnxruntime.InferenceSession`.

    Args:
        path: the ONNX file.
        mode: `fast` fuses Q/DQ into integer kernels, `exact` runs them as written.
        threads: size of the process's one thread pool; the first engine of a process decides, None takes every core it may use.
        optimized: where to write the graph as the runtime optimized it, for inspection.

    Raises:
        MissingBackendError: onnxruntime is not installed.
        PtqdError: the runtime refuses the graph.
    """

    def __init__(self, path: Path, *, mode: Mode = "fast", threads: int | None = None, optimized: Path | None = None) -> None:
        _share_threads(threads or cores())
        self._session = _session(path, _AS_WRITTEN if mode == "exact" else _fast_config(), optimized)
        inputs = tuple(_spec(value) for value in self._session.get_inputs())
        (output,) = (_spec(value) for value in self._session.get_outputs())
        super().__init__(f"{path.stem} on ONNX Runtime", inputs, output)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        (out,) = self._session.run(None, dict(feeds))
        return np.asarray(out, dtype=np.float32)


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, _DTYPES[value.type], tuple(value.shape[1:]))


def _share_threads(threads: int) -> None:
    """Give the process its one pool of threads: sessions with pools of their own would fight over the cores."""
    ort = _import()
    with contextlib.suppress(ort.capi.onnxruntime_pybind11_state.Fail):  # the pool exists: the first engine decided its size
        ort.set_global_thread_pool_sizes(threads, 1)


def _session(path: Path, config: Mapping[str, str], optimized: Path | None = None) -> Any:
    ort = _import()
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise PtqdError("ONNX Runtime refuses the graph.", found=f"{path}: {error}", mend="rebuild the bundle") from error


@functools.cache
def _fast_config() -> Mapping[str, str]:
    """What keeps integer products exact on this processor: asked of the processor by a product that saturates, not of its name."""
    return _EXACT_PRODUCTS if saturates({}) else {}


def saturates(config: Mapping[str, str]) -> bool:
    """Whether uint8 x int8 products come out too small under a session configuration.

    See `tools/make_saturation_probe.py`: with inputs of one, the probe's result is 64, and about 32 where pairs of products saturate.
    """
    (out,) = _session(_PROBE, config).run(None, {"x": np.ones((1, 64), dtype=np.float32)})
    return bool(np.abs(out - 64).max() > 0.5)


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError(
            "ONNX Runtime is not installed.", found=str(error), mend="pip install 'ptqd-export[cpu]' (or [gpu])"
        ) from error
    return onnxruntime
