"""A graph that ONNX Runtime can run on a CPU."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.reading.fused.gpu_nodes import needs_a_gpu, standard_parts
from ptqd_export.models.onnx_graph.reading.fused.node_parts import NodeParts
from ptqd_export.models.onnx_graph.reading.onnx_file import OLDEST, in_16_bits, plain_node, read_model

CAST_LIKE = 15
"""First version of the standard with CastLike, which graphs in 16 bits need."""

SAME_AS_CAST_LIKE = 13
"""First version from which no operator computes anything else in `CAST_LIKE`."""


def runnable_graph(path: Path, folder: Path) -> Path:
    """Return a graph without nodes that only GPUs have kernels for: the file itself, or a copy in `folder` with these nodes written out."""
    model = read_model(path)
    common.InlinePass()(model)
    half, version = in_16_bits(model), model.opset_imports.get("", OLDEST)
    found = [(node, plain) for node in model.graph if needs_a_gpu(plain := plain_node(node, model.opset_imports))]
    if not found:
        return path
    if half and version < CAST_LIKE:
        version = model.opset_imports[""] = _newer(version, path)
    for node, plain in found:
        _replace(model.graph, node, standard_parts(plain, version, half=half))
    copy = folder / path.name
    ir.save(model, copy, external_data=f"{path.name}.data")
    return copy


def _newer(version: int, path: Path) -> int:
    """Return the version of the standard that a copy of a graph in 16 bits may claim: inference means the same from 13 to 15.

    Raises:
        UsageError: the graph is older.
    """
    if version < SAME_AS_CAST_LIKE:
        raise UsageError(
            "The graph's operators are too old to write its fused operators out in 16 bits.",
            found=f"{path}: opset {version}",
            expected=f"opset {SAME_AS_CAST_LIKE} or newer",
            mend="export it again with a newer opset, or take the graph from before ONNX Runtime optimized it",
        )
    return CAST_LIKE


def _replace(graph: ir.Graph, node: ir.Node, parts: NodeParts) -> None:
    values = {value.name: value for value in node.inputs if value is not None}
    for name, array in parts.constants.items():
        values[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(values[name])
    ends, made = {value.name: value for value in node.outputs}, list[ir.Node]()
    for part in parts.nodes:
        outputs = [ir.Value(name=name) for name in part.outputs]
        inputs = [values[name] if name else None for name in part.inputs]
        made.append(ir.node(part.op, inputs, part.attributes, domain=part.domain, outputs=outputs))
        values |= dict(zip(part.outputs, outputs, strict=True))
    old = [value for name, value in ends.items() if name in values]
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, old, [values[value.name] for value in old])
