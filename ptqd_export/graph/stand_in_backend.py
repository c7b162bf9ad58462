"""Runs graphs in standard types whose own types only their target has: bfloat16, and floats in blocks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from engines.backends.base import Backend, Engine


@dataclass(frozen=True)
class StandInBackend:
    """Backend for graphs for TensorRT, see `engines.backends.base.Backend`. It runs them as `runnable` writes them.

    Attributes:
        backend: backend that runs what `runnable` writes.
    """

    backend: Backend

    def open(self, graph: Path, rows: int) -> Engine:
        with tempfile.TemporaryDirectory() as folder:
            return self.backend.open(runnable(graph, Path(folder)), rows)


def runnable(graph: Path, folder: Path) -> Path:
    """Return the graph, or, if only its target has one of its types, a graph that computes the same without it, written to the folder under
    the same name: floats in blocks are decoded, and bfloat16 is computed in float32 and rounded.
    """
    import onnx_ir as ir  # imported here so that commands that run no such graph load no framework

    from ptqd_export.graph.graph_files import save_graph
    from ptqd_export.graph.passes.decoded_floats import ToDecodedFloats
    from ptqd_export.graph.passes.rounded_float32 import ToRoundedFloat32

    model = ir.load(graph)
    changed = [rewrite(model).modified for rewrite in (ToDecodedFloats(), ToRoundedFloat32())]
    if not any(changed):
        return graph
    path = folder / graph.name
    save_graph(model, path)
    return path
