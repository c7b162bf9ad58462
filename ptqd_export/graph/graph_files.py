"""Graphs as files: standard ONNX, with the weights of large graphs in a file beside them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from engines.backends.onnxruntime.weight_shift import WEIGHT_SHIFT

EXTERNAL_DATA_BYTES = 2**30
"""Graphs with more weights than this keep them in a `.data` file beside the graph: a protobuf file ends at 2 GiB."""


def save_graph(graph: ir.Model, path: Path) -> None:
    """Write a graph; initializers no node uses should be gone already. What is replaced in a graph when it is loaded must lie beside it."""
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    if weights > EXTERNAL_DATA_BYTES or WEIGHT_SHIFT in graph.graph.initializers:
        ir.save(graph, path, external_data=f"{path.name}.data")
    else:
        ir.save(ir.external_data.load_to_model(graph), path)  # the weights may lie beside the larger graph that this one was made from
