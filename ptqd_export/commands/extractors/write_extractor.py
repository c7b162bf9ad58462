"""Write an extractor's graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from engines.host.files import replacing, writable_folder
from ptqd_export.graph.graph_files import save_graph


def write_extractor(make: Callable[[], ir.Model], path: Path) -> None:
    """Write a graph, whole or not at all. The folder is checked before the graph is made.

    Raises:
        UsageError: the folder cannot be written to.
    """
    writable_folder(path.absolute().parent)
    graph = make()
    with replacing(path) as temporary:
        save_graph(graph, temporary)
