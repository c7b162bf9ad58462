"""Write fused operators of ONNX Runtime as operators of the standard: those that hold weights, so that the weights become layers, and those
that only GPUs have kernels for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.operators.fused_operators import MICROSOFT, PARTS
from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode
from ptqd_export.models.onnx_graph.reading.fused.gpu_nodes import needs_a_gpu, standard_parts
from ptqd_export.models.onnx_graph.reading.fused.node_parts import NodeParts
from ptqd_export.models.onnx_graph.reading.onnx_file import OnnxGraph


def split_fused(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with its FusedConv, FusedMatMul, TransposeMatMul, FusedGemm and Attention nodes, and those of `gpu_nodes`, split up.

    Raises:
        UsageError: such a node has an option that is not supported.
    """
    nodes, constants = list[OnnxNode](), dict(graph.constants)
    for node in graph.nodes:
        parts = _parts(node, graph.version)
        nodes += [node] if parts is None else parts.nodes
        constants |= {} if parts is None else parts.constants
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _parts(node: OnnxNode, version: int) -> NodeParts | None:
    if needs_a_gpu(node):
        return standard_parts(node, version)
    write = _WRITTEN.get(node.op) if node.domain == MICROSOFT else None
    if write is None:
        return None
    parts = NodeParts(node, version)
    write(parts)
    return parts


def _convolution(parts: NodeParts) -> None:
    inputs = parts.node.inputs
    _activated(parts, "Conv", inputs[:3], inputs[3] if len(inputs) > 3 else "")


def _general_product(parts: NodeParts) -> None:
    _activated(parts, "Gemm", parts.node.inputs)


def _activated(parts: NodeParts, op: str, inputs: Sequence[str], skip: str = "") -> None:
    """Add the layer, the sum with another tensor if there is one, and the activation if there is one."""
    attributes, activation = parts.node.attributes, parts.node.attributes.get("activation")
    if activation and (attributes.get("activation_params") or activation not in ("Relu", "Sigmoid", "Tanh")):
        raise _unsupported(parts.node, f"activation {activation}")
    out = parts.add(op, *inputs, **{key: value for key, value in attributes.items() if not key.startswith("activation")})
    if skip:
        out = parts.add("Add", out, skip)
    parts.end(parts.add(activation, out) if activation else out)


def _product(parts: NodeParts) -> None:
    """Add a product of matrices with Gemm's options; only its last two axes may be transposed."""
    options, sides = parts.node.attributes, list(parts.node.inputs[:2])
    if options.get("transBatchA") or options.get("transBatchB"):
        raise _unsupported(parts.node, "a transposed batch")
    for index, name in enumerate(("transA", "transB")):
        if options.get(name):
            sides[index] = parts.add("SwapLastAxes", sides[index], domain=PARTS)
    out, factor = parts.add("MatMul", *sides), options.get("alpha", 1.0)
    parts.end(out if factor == 1.0 else parts.add("Scale", out, domain=PARTS, factor=factor))


def _attention(parts: NodeParts) -> None:
    """Add the product that makes queries, keys and values, and the attention of all three."""
    node, options = parts.node, dict(parts.node.attributes)
    x, weight, bias, mask, past, scores, *more = [*node.inputs, *[""] * 7][:7]
    if mask or past or any(more) or len(set(options.pop("qkv_hidden_sizes", None) or [0])) > 1 or options.pop("do_rotary", 0):
        raise _unsupported(node, "a padding mask, a cache, rotary positions, or values of another width")
    packed = parts.add("MatMul", x, weight)
    packed = parts.add("Add", packed, bias) if bias else packed
    inputs = [*parts.split(packed, -1, 3), "", "", scores]
    parts.end(parts.add("MultiHeadAttention", *inputs, domain=MICROSOFT, **options))


def _unsupported(node: OnnxNode, what: str) -> UsageError:
    return UsageError(
        "A fused node of the graph is not supported.",
        found=f"{node}: {what}",
        mend="take the graph from before ONNX Runtime optimized it",
    )


_WRITTEN: Mapping[str, Callable[[NodeParts], None]] = {
    "Attention": _attention,
    "FusedConv": _convolution,
    "FusedGemm": _general_product,
    "FusedMatMul": _product,
    "TransposeMatMul": _product,
}
