"""Which runtime a bundle's graphs run on."""

from __future__ import annotations

from typing import Literal, TypeAlias

from engines.backends.base import Backend
from engines.backends.onnxruntime import OnnxRuntimeBackend, Provider
from engines.bundle import Bundle
from engines.errors import UsageError
from engines.tensorrt.backend import EngineSettings, TensorRtBackend
from engines.tensorrt.flavour import FLAVOURS, FlavourName

Runtime: TypeAlias = Literal["target", "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
"""`target` is the one that the bundle was built for."""


def open_backend(bundle: Bundle, runtime: Runtime) -> Backend:
    """The runtime that was asked for, and no other.

    Raises:
        MissingBackendError: it or its device is missing.
    """
    name = bundle.manifest.target.name if runtime == "target" else runtime
    if name == "tensorrt" or name == "tensorrt-rtx":
        return TensorRtBackend(engine_settings(bundle, name), bundle.folder)
    return on_onnxruntime(bundle, provider="CUDA" if name == "onnxruntime-cuda" else "CPU")


def on_onnxruntime(bundle: Bundle, threads: int | None = None, provider: Provider = "CPU") -> OnnxRuntimeBackend:
    """Graphs of another target run as written: the runtime's fused kernels are for its own graphs, and on its CPU."""
    own = bundle.manifest.target.name == "onnxruntime" and provider == "CPU"
    return OnnxRuntimeBackend(threads, provider, "fast" if own else "exact")


def engine_settings(bundle: Bundle, flavour: FlavourName) -> EngineSettings:
    """How the bundle's engines are built; both flavours of TensorRT take the same graphs.

    Raises:
        UsageError: the bundle holds graphs for another runtime.
    """
    target = bundle.manifest.target
    if target.profile is None:
        raise UsageError(
            "The bundle's graphs are not for TensorRT.",
            found=f"target {target.name}",
            expected=" or ".join(FLAVOURS),
            mend="build a bundle with this target in its plan",
        )
    return EngineSettings.of(flavour, target.profile, target.workspace_gib)
