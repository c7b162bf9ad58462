"""Choose the runtime for a bundle's graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from engines.backends.base import Backend
from engines.backends.measured_runtimes import MeasuredRuntimes
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, mode_of
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.backends.openvino.openvino_backend import OpenVinoBackend
from engines.backends.tensorrt.flavour import FLAVOURS, FlavourName
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import size_name
from engines.errors import UnknownNameError, UsageError
from engines.host.machine import cores, machine_name
from engines.terminal.installed_packages import installed_versions
from engines.terminal.verbosity import detail

RuntimeName: TypeAlias = Literal["onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx"]
Runtime: TypeAlias = Literal["auto", "target"] | RuntimeName
"""`target` stands for the runtime that the bundle was built for, and `auto` for the fastest that is right on this machine."""


PACKAGES: Mapping[RuntimeName, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
"""Packages that provide a runtime, the most likely first."""

ON_CPU: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
"""Runtimes that compute on a CPU."""


def runtime_name(bundle: Bundle, runtime: Runtime) -> RuntimeName:
    """Return the name of the requested runtime, resolving `target` and `auto`. Raises the errors of `chosen_runtime`."""
    return chosen_runtime(bundle, runtime)[0]


def chosen_runtime(bundle: Bundle, runtime: Runtime) -> tuple[RuntimeName, str]:
    """Return the name of the requested runtime, and why it is that one.

    `auto` takes the fastest of the runtimes that `ptqd-export engines` measured on this machine and found right. Where it measured none,
    and for a target on a GPU, it takes the target.

    Raises:
        UsageError: there is no such runtime.
        BundleError: the measured runtimes are damaged.
    """
    known = get_args(RuntimeName)
    if runtime not in ("auto", "target", *known):
        raise UnknownNameError("There is no such runtime.", found=runtime, known=("auto", "target", *known))
    if runtime != "target" and runtime != "auto":
        return runtime, "asked for"
    record = bundle.manifest.target
    target: RuntimeName = "onnxruntime-cuda" if record.provider == "CUDA" else record.name
    if runtime == "target":
        return target, "the bundle's target"
    if target not in ON_CPU:
        return target, "the bundle's target, which runs on a GPU"
    measured = MeasuredRuntimes.read(bundle)
    if measured is None:
        return target, "the bundle's target"
    best = measured.best({name: installed_versions(*PACKAGES[name]) for name in ON_CPU})
    if best is None:
        return target, "the bundle's target; no runtime that was measured on this machine is right and still installed"
    timed = f", timed at {size_name(bundle.whole.model.image_size)}" if bundle.whole.sizes else ""
    return best, f"the fastest that is right of {', '.join(measured.runtimes)}, as measured on this machine{timed}"


def provider_of(name: RuntimeName) -> Provider:
    """Return the kind of device that a runtime computes on."""
    return "CPU" if name in ON_CPU else "CUDA"


def open_backend(bundle: Bundle, runtime: Runtime, threads: int | None = None) -> Backend:
    """Return the backend of the requested runtime, never of another.

    Args:
        bundle: bundle with the graphs and their target.
        runtime: requested runtime.
        threads: threads of a CPU runtime; None uses every core that the process may use.

    Raises:
        MissingBackendError: the runtime or its device is missing.
    """
    name, reason = chosen_runtime(bundle, runtime)
    detail(f"runtime: {name} on {provider_of(name)}, {threads or cores()} CPU threads ({reason})")
    if name == "tensorrt" or name == "tensorrt-rtx":
        return TensorRtBackend(engine_settings(bundle, name), bundle.folder)
    if name == "openvino":
        return OpenVinoBackend(threads, bundle.folder / "local" / machine_name() / name)
    return on_onnxruntime(bundle, threads, "CUDA" if name == "onnxruntime-cuda" else "CPU")


def on_onnxruntime(bundle: Bundle, threads: int | None = None, provider: Provider | None = None) -> OnnxRuntimeBackend:
    """Return the ONNX Runtime backend. The default provider is the one that the statistics were measured on."""
    target = bundle.manifest.target
    provider = provider or target.provider
    mode = mode_of(target.name, provider)
    return OnnxRuntimeBackend(threads, provider, mode, OptimizedGraphs.of(bundle) if mode == "fast" else None)


def engine_settings(bundle: Bundle, flavour: FlavourName) -> EngineSettings:
    """Return the build settings of the bundle's engines; both flavours of TensorRT use the same graphs.

    Raises:
        UsageError: the bundle contains graphs for another runtime.
    """
    target = bundle.manifest.target
    if target.profile is None:
        raise UsageError(
            "The bundle's graphs are not for TensorRT.",
            found=f"target {target.name}",
            expected=" or ".join(FLAVOURS),
            mend="build a bundle with one of these targets in its plan",
        )
    return EngineSettings.of(flavour, target.profile, target.workspace_gib)
