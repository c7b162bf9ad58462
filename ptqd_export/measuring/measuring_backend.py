"""Opens the backend that runs the networks while statistics are measured, for builds and added schedules."""

from __future__ import annotations

from typing import Protocol

from calib.quantizers.rules.placement import HighPrecision
from engines.backends.base import Backend
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, mode_of
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from ptqd_export.graph.stand_in_backend import StandInBackend
from ptqd_export.measuring.measured_with import MeasuredWith


class MeasuredTarget(Protocol):
    """The properties of a target that both plans and manifests have."""

    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> Provider: ...
    @property
    def high_precision(self) -> HighPrecision: ...


def measuring_backend(target: MeasuredTarget, threads: int | None = None, optimized: OptimizedGraphs | None = None) -> Backend:
    """Return the backend that measures the graphs of a target on ONNX Runtime.

    Args:
        target: target of the graphs.
        threads: threads of a runtime on the CPU; None uses every core available to the process.
        optimized: graphs that this machine has already optimized; used in fast mode.
    """
    mode = mode_of(target.name, target.provider)
    backend = OnnxRuntimeBackend(threads, target.provider, mode, optimized if mode == "fast" else None)
    return backend if target.name == "onnxruntime" else StandInBackend(backend)


def opened_backend(measured: MeasuredWith, target: MeasuredTarget, threads: int | None = None) -> Backend:
    """Return the backend of a runtime that needs no engines of its own.

    Args:
        measured: what runs the networks: PyTorch, or ONNX Runtime.
        target: target of the graphs.
        threads: see `measuring_backend`.
    """
    if measured.runtime == "torch":
        from ptqd_export.measuring.torch_backend import TorchBackend  # imported here so that ONNX Runtime needs no framework

        backend: Backend = TorchBackend(measured.device)
    elif measured.runtime == "onnxruntime-exact":
        backend = OnnxRuntimeBackend(threads, "CPU", "exact")
    else:
        return measuring_backend(target, threads)
    return backend if target.name == "onnxruntime" else StandInBackend(backend)
