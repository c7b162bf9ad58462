"""Write the fused operators of ONNX Runtime that hold weights as operators of the standard, so that their weights become layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.operators.fused_operators import MICROSOFT, PARTS
from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode

WRITTEN = 18
"""Version of the operators that are written here."""

_PRODUCTS = ("FusedMatMul", "TransposeMatMul")


def split_fused(nodes: Sequence[OnnxNode]) -> tuple[OnnxNode, ...]:
    """Return the nodes with FusedConv, FusedMatMul, TransposeMatMul and FusedGemm split up.

    Raises:
        UsageError: such a node has an activation with parameters, or transposes its batch.
    """
    return tuple(part for node in nodes for part in _parts(node))


def _parts(node: OnnxNode) -> Iterator[OnnxNode]:
    if node.domain == MICROSOFT and node.op == "FusedConv":
        yield from _activated(node, "Conv", node.inputs[:3], node.inputs[3] if len(node.inputs) > 3 else "")
    elif node.domain == MICROSOFT and node.op == "FusedGemm":
        yield from _activated(node, "Gemm", node.inputs)
    elif node.domain == MICROSOFT and node.op in _PRODUCTS:
        yield from _product(node)
    else:
        yield node


def _activated(node: OnnxNode, op: str, inputs: Sequence[str], skip: str = "") -> Iterator[OnnxNode]:
    """Yield the layer, the sum with another tensor if there is one, and the activation if there is one."""
    out, activation = node.outputs[0], node.attributes.get("activation")
    if activation and (node.attributes.get("activation_params") or activation not in ("Relu", "Sigmoid", "Tanh")):
        raise _unsupported(node, f"activation {activation}")
    last = f"{out}.{op}" if activation else out
    layer = f"{out}.layer" if skip else last
    yield _standard(node, op, inputs, layer, {key: value for key, value in node.attributes.items() if not key.startswith("activation")})
    if skip:
        yield _standard(node, "Add", (layer, skip), last)
    if activation:
        yield _standard(node, activation, (last,), out)


def _product(node: OnnxNode) -> Iterator[OnnxNode]:
    """Yield a product of matrices with Gemm's options; only its last two axes may be transposed."""
    options, out = node.attributes, node.outputs[0]
    if options.get("transBatchA") or options.get("transBatchB"):
        raise _unsupported(node, "a transposed batch")
    sides = list(node.inputs[:2])
    for index, name in enumerate(("transA", "transB")):
        if options.get(name):
            yield _standard(node, "SwapLastAxes", (sides[index],), f"{out}.{name}")
            sides[index] = f"{out}.{name}"
    scaled = options.get("alpha", 1.0) != 1.0
    yield _standard(node, "MatMul", sides, f"{out}.product" if scaled else out)
    if scaled:
        yield _standard(node, "Scale", (f"{out}.product",), out, {"factor": options["alpha"]})


def _standard(node: OnnxNode, op: str, inputs: Sequence[str], out: str, attributes: Mapping[str, Any] | None = None) -> OnnxNode:
    domain = PARTS if op in ("Scale", "SwapLastAxes") else ""
    return OnnxNode(node.name, op, domain, WRITTEN, tuple(inputs), (out,), attributes or {})


def _unsupported(node: OnnxNode, what: str) -> UsageError:
    return UsageError(
        "A fused node of the graph is not supported.",
        found=f"{node}: {what}",
        mend="take the graph from before ONNX Runtime optimized it",
    )
