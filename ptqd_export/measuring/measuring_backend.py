"""Chooses the backend that runs the networks while statistics are measured, for builds and added schedules: always ONNX Runtime."""

from __future__ import annotations

from typing import Protocol

from calib.quantizers.rules.placement import HighPrecision
from engines.backends.base import Backend
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, mode_of
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.bundle.bundle import Bundle
from ptqd_export.graph.cpu_stand_in import CpuStandIn


class MeasuredTarget(Protocol):
    """The properties of a target that both plans and manifests have."""

    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> Provider: ...
    @property
    def high_precision(self) -> HighPrecision: ...


def measuring_backend(target: MeasuredTarget, threads: int | None = None, optimized: OptimizedGraphs | None = None) -> Backend:
    """Return the backend that measures the graphs of a target.

    Args:
        target: target of the graphs.
        threads: threads of a runtime on the CPU; None uses every core available to the process.
        optimized: graphs that this machine has already optimized; used in fast mode.
    """
    mode = mode_of(target.name, target.provider)
    backend = OnnxRuntimeBackend(threads, target.provider, mode, optimized if mode == "fast" else None)
    return backend if target.name == "onnxruntime" else CpuStandIn(backend)


def bundle_measuring_backend(bundle: Bundle, threads: int | None = None) -> Backend:
    """Return the backend that the statistics of a bundle were measured on."""
    return measuring_backend(bundle.manifest.target, threads, OptimizedGraphs.of(bundle))
