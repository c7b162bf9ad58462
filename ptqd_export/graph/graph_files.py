"""Saves graphs as standard ONNX files, with the weights of large graphs in a separate file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from engines.backends.onnxruntime.weight_shift import WEIGHT_SHIFT

EXTERNAL_DATA_BYTES = 2**26
"""Graphs with more weights than this store them in a `.data` file beside the graph. A protobuf file is limited to 2 GiB, and whoever reads
one holds its weights several times; a file of weights is mapped.
"""


def save_graph(graph: ir.Model, path: Path) -> None:
    """Write a graph. Unused initializers should already be removed. Weights that are replaced at load time must be in the `.data` file."""
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    if weights > EXTERNAL_DATA_BYTES or WEIGHT_SHIFT in graph.graph.initializers:
        ir.save(graph, path, external_data=f"{path.name}.data")
    else:
        ir.save(ir.external_data.load_to_model(graph), path)  # the weights may still be in the data file of the larger source graph


def save_with_data(graph: ir.Model, path: Path) -> None:
    """Write a graph with its weights in the `.data` file beside it, whatever their size."""
    ir.save(graph, path, external_data=f"{path.name}.data")


def save_sharing(graph: ir.Model, path: Path, whole: Path) -> None:
    """Write a graph beside another, `whole`, from whose `.data` file it reads every tensor that both have. It holds the others itself."""
    stored = {name: value.const_value for name, value in ir.load(whole).graph.initializers.items()}
    ir.external_data.load_to_model(graph)
    for name, value in graph.graph.initializers.items():
        other, own = stored.get(name), value.const_value
        if isinstance(other, ir.ExternalTensor) and own is not None and _are_equal(own, other):
            value.const_value = other
    ir.save(graph, path)


def _are_equal(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
