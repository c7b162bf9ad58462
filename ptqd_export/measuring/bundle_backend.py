"""Opens networks and decoder of a bundle on the backend that measured its statistics."""

from __future__ import annotations

from engines.backends.base import Backend
from engines.backends.choice import open_backend
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.bundle.bundle import Bundle
from engines.networks.decoder import open_decoder
from engines.networks.image_decoder import Decoder
from engines.terminal.verbosity import detail
from ptqd_export.measuring.measured_with import MeasuredWith
from ptqd_export.measuring.measuring_backend import measuring_backend, opened_backend

_TENSORRT = ("tensorrt", "tensorrt-rtx")


def bundle_measuring_backend(bundle: Bundle, threads: int | None = None) -> Backend:
    """Return the backend that the statistics of a bundle were measured on.

    Raises:
        MissingBackendError: the runtime or its device is missing.
    """
    target, runtime = bundle.manifest.target, bundle.manifest.measured_on
    if runtime in _TENSORRT:
        return open_backend(bundle, "target", threads)
    if runtime == "torch":
        import torch  # other bundles need no framework

        device = "cuda" if torch.cuda.is_available() else "cpu"
        detail(f"measuring in PyTorch on {device}, as the bundle's statistics were measured in PyTorch")
        return opened_backend(MeasuredWith("torch", "torch", device), target, threads)
    if runtime == "onnxruntime-exact":
        return opened_backend(MeasuredWith("cpu", "onnxruntime-exact"), target, threads)
    return measuring_backend(target, threads, OptimizedGraphs.of(bundle))


def measuring_decoder(bundle: Bundle, threads: int | None = None) -> Decoder:
    """Open the decoder of a bundle on the same backend. Raises what `open_decoder` raises."""
    record = bundle.manifest.model.decoder
    if record is None or bundle.manifest.measured_on in _TENSORRT:
        return open_decoder(bundle, "target", threads)
    engine = bundle_measuring_backend(bundle, threads).open(bundle.graph(record.file, record.weights), record.batch)
    return Decoder(engine, record.batch, record.image_shape, record.tile)
