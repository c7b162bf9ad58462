"""Saves graphs as standard ONNX files, with the weights of large graphs in files beside them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from engines.backends.onnxruntime.weight_shift import WEIGHT_SHIFT
from engines.untrusted.external_data import WEIGHTS, is_weights_of

EXTERNAL_DATA_BYTES = 2**26
"""Graphs with more weights than this store them in a `.data` file beside the graph. A protobuf file is limited to 2 GiB, and whoever reads
one holds its weights several times; a file of weights is mapped.
"""

SHARD_BYTES = 4 * 10**9
"""Most bytes of a `.data` file; more weights lie in numbered shards. Some file systems take files of 4 GiB, and object stores 5 GB in one
upload. A tensor that is larger has a shard of its own.
"""


def save_graph(graph: ir.Model, path: Path) -> None:
    """Write a graph. Unused initializers should already be removed. Weights that are replaced at load time must be in the `.data` file."""
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    if weights > EXTERNAL_DATA_BYTES or WEIGHT_SHIFT in graph.graph.initializers:
        save_with_data(graph, path)
    else:
        ir.save(ir.external_data.load_to_model(graph), path)  # the weights may still be in the data file of the larger source graph


def save_with_data(graph: ir.Model, path: Path) -> None:
    """Write a graph with its weights in the `.data` file beside it, whatever their size, or in shards of that file. They replace the files
    of an earlier graph of this name; whoever has mapped those keeps them.
    """
    for file in path.parent.iterdir():
        if is_weights_of(file.name, path.name):
            file.unlink()
    ir.save(graph, path, external_data=f"{path.name}{WEIGHTS}", max_shard_size_bytes=SHARD_BYTES)


def save_sharing(graph: ir.Model, path: Path, whole: Path) -> None:
    """Write a graph beside another, `whole`, from whose weights it reads every tensor that both have. It holds the others itself."""
    stored = {name: value.const_value for name, value in ir.load(whole).graph.initializers.items()}
    ir.external_data.load_to_model(graph)
    for name, value in graph.graph.initializers.items():
        other, own = stored.get(name), value.const_value
        if isinstance(other, ir.ExternalTensor) and own is not None and _are_equal(own, other):
            value.const_value = other
    ir.save(graph, path)


def _are_equal(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
