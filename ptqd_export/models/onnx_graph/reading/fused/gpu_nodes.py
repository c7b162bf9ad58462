"""Write the operators of ONNX Runtime that only GPUs have kernels for as operators that every machine has.

The optimizers of ONNX Runtime and Optimum put them into the U-Nets of Stable Diffusion. What they compute, by ONNX Runtime's documentation:

1. NhwcConv: a Conv whose input, weight and output have their channels last.
2. GroupNorm: a group norm, with channels last or first, and with `x * sigmoid(x)` behind it or not.
3. SkipGroupNorm: the same of a sum, which is its second output: of an input, a skip [n, h, w, c], [n, 1, 1, c] or [n, c], and a bias
   [c].
4. BiasSplitGelu: `a * gelu(b)` of the halves a and b of the last axis, after a bias is added.
5. BiasAdd: a bias and a skip are added.
6. MultiHeadAttention with packed inputs: queries, keys and values [n, s, heads, 3, d], or keys and values [n, s, heads, 2, d].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from engines.errors import UsageError
from ptqd_export.models.onnx_graph.operators.fused_operators import MICROSOFT
from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode
from ptqd_export.models.onnx_graph.reading.fused.node_parts import NodeParts

CHANNELS_FIRST, CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
"""Transpositions of an image whose channels are last, and back."""


def needs_a_gpu(node: OnnxNode) -> bool:
    """Return whether a node is one of those above."""
    if node.domain != MICROSOFT or node.op not in _WRITTEN:
        return False
    return node.op != "MultiHeadAttention" or not (_has(node, 1) and _has(node, 2))


def standard_parts(node: OnnxNode, version: int, *, half: bool = False) -> NodeParts:
    """Return the nodes that compute what a node computes that needs a GPU.

    Args:
        node: the node.
        version: version of the standard operators in its graph.
        half: whether the graph computes in 16 bits.

    Raises:
        UsageError: the node has an activation that its operator does not document.
    """
    parts = NodeParts(node, version, half=half)
    _WRITTEN[node.op](parts)
    return parts


def _convolution(parts: NodeParts) -> None:
    x, weight, *bias = parts.node.inputs
    first = (parts.add("Transpose", value, perm=CHANNELS_FIRST) for value in (x, weight))
    out = parts.add("Conv", *first, *bias, **parts.node.attributes)
    parts.end(parts.add("Transpose", out, perm=CHANNELS_LAST))


def _group_norm(parts: NodeParts) -> None:
    parts.end(_normalized(parts, parts.node.inputs[0]))


def _skip_group_norm(parts: NodeParts) -> None:
    x, scale, _, skip, *bias = parts.node.inputs
    shape = parts.add("Concat", parts.constant([0, -1]), parts.add("Shape", scale), axis=0)
    flat = [parts.add("Reshape", one, shape) for one in (x, skip)]  # [n, pixels, c], whatever axes the skip has
    total = parts.add("Reshape", parts.add("Add", *flat), parts.add("Shape", x))
    if bias and bias[0]:
        total = parts.add("Add", total, parts.like(bias[0], x))
    parts.end(_normalized(parts, total), total)


def _normalized(parts: NodeParts, x: str) -> str:
    """Add the norm as exporters write it, so that it is recognised as one: an instance norm of the groups, a scale and a shift."""
    get = parts.node.attributes.get
    groups, activation, is_last = get("groups"), get("activation", 0), get("channels_last", 1)
    if activation not in (0, 1):
        raise UsageError("A node of the graph is not supported.", found=f"{parts.node}: activation {activation}", expected="0 or 1 (SiLU)")
    inner = parts.add("Transpose", x, perm=CHANNELS_FIRST) if is_last else x
    grouped = parts.add("Reshape", inner, parts.constant([0, groups, -1]))
    ones, zeros = (parts.constant(np.full(groups, value), like=x) for value in (1.0, 0.0))
    normal = parts.add("InstanceNormalization", grouped, ones, zeros, epsilon=get("epsilon", 1e-5))
    normal = parts.add("Reshape", normal, parts.add("Shape", inner))
    scale, shift = (parts.like(parts.add("Reshape", name, parts.constant([-1, 1, 1])), x) for name in parts.node.inputs[1:3])
    out = parts.add("Add", parts.add("Mul", normal, scale), shift)
    if activation:
        out = parts.add("Mul", out, parts.add("Sigmoid", out))
    return parts.add("Transpose", out, perm=CHANNELS_LAST) if is_last else out


def _split_gelu(parts: NodeParts) -> None:
    left, right = parts.split(parts.add("Add", *parts.node.inputs), -1, 2)
    parts.end(parts.add("Mul", left, parts.add("Gelu", right, domain=MICROSOFT)))


def _sum(parts: NodeParts) -> None:
    x, bias, skip = parts.node.inputs
    parts.end(parts.add("Add", parts.add("Add", x, bias), skip))


def _attention(parts: NodeParts) -> None:
    taken = list(parts.node.inputs) + [""] * (3 - len(parts.node.inputs))
    packed = 0 if not taken[1] else 1
    shape = parts.constant([0, 0, -1])
    taken[packed:3] = [parts.add("Reshape", one, shape) for one in parts.split(taken[packed], 3, 3 - packed)]
    parts.end(parts.add("MultiHeadAttention", *taken, domain=MICROSOFT, **parts.node.attributes))


def _has(node: OnnxNode, index: int) -> bool:
    return index < len(node.inputs) and bool(node.inputs[index])


_WRITTEN: Mapping[str, Callable[[NodeParts], None]] = {
    "BiasAdd": _sum,
    "BiasSplitGelu": _split_gelu,
    "GroupNorm": _group_norm,
    "MultiHeadAttention": _attention,
    "NhwcConv": _convolution,
    "SkipGroupNorm": _skip_group_norm,
}
