"""ONNX Runtime in place of a GPU, for graphs with types that it has no kernels for on the CPU."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from calib.placement import HighPrecision
from engines.backends.base import Backend, Engine
from engines.backends.choice import on_onnxruntime
from engines.bundle import Bundle


@dataclass(frozen=True)
class StandInBackend:
    """See `engines.backends.base.Backend`. What computes in bfloat16 runs in float32, every result rounded to bfloat16.

    Attributes:
        backend: that runs it.
    """

    backend: Backend

    def open(self, graph: Path, rows: int) -> Engine:
        with tempfile.TemporaryDirectory() as folder:
            return self.backend.open(runnable(graph, Path(folder)), rows)


def standing_in(backend: Backend, high_precision: HighPrecision) -> Backend:
    """The backend itself where it has kernels for the type."""
    return StandInBackend(backend) if high_precision == "bf16" else backend


def measuring_backend(bundle: Bundle, threads: int | None = None) -> Backend:
    """What the statistics of a bundle were measured on."""
    return standing_in(on_onnxruntime(bundle, threads), bundle.manifest.target.high_precision)


def runnable(graph: Path, folder: Path) -> Path:
    """The graph, or where it computes in bfloat16 its stand-in, which is written to the folder under the same name."""
    import onnx_ir as ir  # here, for commands that run no such graph load no framework

    from ptqd_export.graph_files import save_graph
    from ptqd_export.passes.rounded_float32 import ToRoundedFloat32

    model = ir.load(graph)
    if not ToRoundedFloat32()(model).modified:
        return graph
    path = folder / graph.name
    save_graph(model, path)
    return path
