"""Find the nodes with weights, and make layers of them: they are quantized like those of any other network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode, Value

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OWN_PADDING = ("NOTSET", "", "VALID")


@dataclass(frozen=True, eq=False)
class GraphLayer:
    """A layer in place of nodes.

    Attributes:
        module: the layer.
        name: what the graph calls it.
        input: name of the tensor that it reads.
        output: name of the tensor that it makes.
        pads: whether the node pads its input by more at one end, which the layer does not.
        nodes: the nodes that it replaces, in their order.
    """

    module: nn.Module
    name: str
    input: str
    output: str
    pads: bool
    nodes: tuple[OnnxNode, ...]


def find_graph_layers(nodes: Sequence[OnnxNode], constants: Mapping[str, Value], output: str) -> list[GraphLayer]:
    """Return a layer for every Conv, Gemm and MatMul with constant weights. A MatMul's layer includes the bias that an Add applies."""
    users: dict[str, list[OnnxNode]] = {output: []}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    found = []
    for node in nodes:
        layer = _layer(node, constants, users, output)
        if layer is not None:
            found.append(layer)
    return found


def _layer(node: OnnxNode, constants: Mapping[str, Value], users: Mapping[str, list[OnnxNode]], output: str) -> GraphLayer | None:
    weight = _weight(node, constants)
    if weight is None:
        return None
    if node.op == "Conv":
        return _convolution(node, weight, constants)
    if node.op == "Gemm":
        return _general(node, weight, constants)
    return _product(node, weight, constants, users, output)


def _weight(node: OnnxNode, constants: Mapping[str, Value]) -> Tensor | None:
    if node.domain or node.op not in ("Conv", "Gemm", "MatMul") or node.inputs[0] in constants:
        return None
    value = constants.get(node.inputs[1])
    fits = isinstance(value, Tensor) and value.is_floating_point() and (node.op == "Conv" or value.ndim == 2)
    return value if fits and isinstance(value, Tensor) else None


def _convolution(node: OnnxNode, weight: Tensor, constants: Mapping[str, Value]) -> GraphLayer | None:
    bias = _optional(node, 2, constants)
    axes = weight.ndim - 2
    if bias is _UNKNOWN or not 1 <= axes <= len(CONVOLUTIONS):
        return None
    get, groups = node.attributes.get, node.attributes.get("group", 1)
    pads = [0] * 2 * axes if get("auto_pad") == "VALID" else list(get("pads") or [0] * 2 * axes)
    own = get("auto_pad", "NOTSET") in _OWN_PADDING and pads[:axes] == pads[axes:]
    with torch.device("meta"):
        module = CONVOLUTIONS[axes - 1](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=tuple(get("strides") or [1] * axes),
            padding=tuple(pads[:axes]) if own else 0,
            dilation=tuple(get("dilations") or [1] * axes),
            groups=groups,
            bias=bias is not None,
        )
    _fill(module, weight, bias)
    return GraphLayer(module, _name(node), node.inputs[0], node.outputs[0], not own, (node,))


def _general(node: OnnxNode, weight: Tensor, constants: Mapping[str, Value]) -> GraphLayer | None:
    bias = _optional(node, 2, constants)
    if bias is _UNKNOWN or node.attributes.get("transA", 0):
        return None
    weight = weight if node.attributes.get("transB", 0) else weight.T
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if bias is not None:
        if bias.numel() not in (1, len(weight)):
            return None
        bias = (bias * beta).reshape(-1).expand(len(weight))
    return GraphLayer(_linear(weight * alpha if alpha != 1 else weight, bias), _name(node), node.inputs[0], node.outputs[0], False, (node,))


def _product(
    node: OnnxNode, weight: Tensor, constants: Mapping[str, Value], users: Mapping[str, list[OnnxNode]], output: str
) -> GraphLayer:
    (out,) = node.outputs
    following = users.get(out, [])
    if len(following) == 1 and following[0].op == "Add" and out != output:
        (add,) = following
        name = next((name for name in add.inputs if name != out), "")
        bias = constants.get(name)
        if (
            isinstance(bias, Tensor)
            and bias.is_floating_point()
            and bias.shape[-1:] == (weight.shape[1],)
            and bias.numel() == weight.shape[1]
        ):
            named = _name(node, name)
            return GraphLayer(_linear(weight.T, bias.reshape(-1)), named, node.inputs[0], add.outputs[0], False, (node, add))
    return GraphLayer(_linear(weight.T, None), _name(node), node.inputs[0], out, False, (node,))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(module, weight, bias)
    return module


def _fill(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.register_parameter("weight", nn.Parameter(weight.contiguous(), requires_grad=False))
    if bias is not None:
        module.register_parameter("bias", nn.Parameter(bias.contiguous(), requires_grad=False))


_UNKNOWN = torch.empty(0)
"""Stands for a bias that is not constant."""


def _optional(node: OnnxNode, index: int, constants: Mapping[str, Value]) -> Tensor | None:
    name = node.inputs[index] if len(node.inputs) > index else ""
    if not name:
        return None
    value = constants.get(name)
    return value if isinstance(value, Tensor) else _UNKNOWN


def _name(node: OnnxNode, bias: str | None = None) -> str:
    """Return the name of a layer: that of its weight or bias without the last part, the scope of the node, or the node's own."""
    names = [*node.inputs[1:3], *([bias] if bias else [])]
    for name in names:
        stem, _, last = name.rpartition(".")
        if stem and last in ("weight", "bias", "kernel"):
            return stem
    scope = [part for part in node.name.split("/") if part]
    if len(scope) > 1:
        return ".".join(scope[:-1] if re.fullmatch(rf"{node.op}(_\d+)?", scope[-1]) else scope)
    return node.name or node.outputs[0]
