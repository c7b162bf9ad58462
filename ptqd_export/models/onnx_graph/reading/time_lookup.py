"""Tell whether a graph looks its time up in a table, which has nothing between two rows."""

from __future__ import annotations

from pathlib import Path

from onnx_ir.passes import common

from ptqd_export.models.onnx_graph.reading.onnx_file import read_model

_INDEXED = ("Gather", "GatherElements", "GatherND")
_KEPT = ("Cast", "Clip", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Unsqueeze")
"""Operators that leave an index an index."""


def looks_up(path: Path, name: str) -> bool:
    """Return whether the input `name` of a graph, moved and cast at most, is an index into a table. Raises the errors of `read_onnx`."""
    model = read_model(path)
    common.InlinePass()(model)
    same = {name}
    for node in model.graph:
        read = [None if value is None else value.name for value in node.inputs]
        if node.op_type in _INDEXED and len(read) > 1 and read[1] in same:
            return True
        if node.op_type in _KEPT and read and read[0] in same:
            same.update(value.name for value in node.outputs if value.name)
    return False
