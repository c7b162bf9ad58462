"""Opens the backend that the statistics of a bundle were measured on."""

from __future__ import annotations

from engines.backends.base import Backend
from engines.backends.choice import open_backend
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.bundle.bundle import Bundle
from engines.terminal.verbosity import detail
from ptqd_export.measuring.measured_with import MeasuredWith
from ptqd_export.measuring.measuring_backend import measuring_backend, opened_backend


def bundle_measuring_backend(bundle: Bundle, threads: int | None = None) -> Backend:
    """Return the backend that the statistics of a bundle were measured on.

    Raises:
        MissingBackendError: the runtime or its device is missing.
    """
    target, runtime = bundle.manifest.target, bundle.manifest.measured_on
    if runtime in ("tensorrt", "tensorrt-rtx"):
        return open_backend(bundle, "target", threads)
    if runtime == "torch":
        import torch  # other bundles need no framework

        device = "cuda" if torch.cuda.is_available() else "cpu"
        detail(f"measuring in PyTorch on {device}, as the bundle's statistics were measured in PyTorch")
        return opened_backend(MeasuredWith("torch", "torch", device), target, threads)
    if runtime == "onnxruntime-exact":
        return opened_backend(MeasuredWith("cpu", "onnxruntime-exact"), target, threads)
    return measuring_backend(target, threads, OptimizedGraphs.of(bundle))
