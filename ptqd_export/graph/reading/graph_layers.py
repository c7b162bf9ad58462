"""Finds the weighted layers of a traced graph and their roles."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import onnx_ir as ir

from calib.quantizers.rules.layers import Layer, Op, Role
from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.reading.transposed_weights import TRANSPOSED

WEIGHT = ".weight"

_LEAST_QUANTIZED_FIRST: tuple[Role, ...] = ("embedding", "boundary", "condition", "inner")


def weighted_nodes(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Return the nodes of every layer by module name. A layer that the network calls twice has two nodes."""
    nodes: dict[str, list[ir.Node]] = {}
    for node in graph:
        name = layer_name(node)
        if name is not None:
            nodes.setdefault(name, []).append(node)
    return nodes


def layer_name(node: ir.Node) -> str | None:
    """Name of the module that a node was traced from; None if the node is not a weighted layer."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.name is None:
        return None
    name = weight.name.removesuffix(TRANSPOSED)
    return name.removesuffix(WEIGHT) if name.endswith(WEIGHT) else None


def find_layers(graph: ir.Graph, macs: Mapping[str, int]) -> list[Layer]:
    """Return every weighted layer in the order of the graph.

    Args:
        graph: full-precision graph whose initializers have parameter names.
        macs: multiply-accumulates per sample, by module name.
    """
    depth = _weighted_depth(graph)
    before_weighted = _before_weighted(graph)
    sources: dict[ir.Value, str] = {}
    layers = []
    for name, nodes in weighted_nodes(graph).items():
        weight = nodes[0].inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        shape = tuple(weight.const_value.shape.numpy())
        op = cast(Op, nodes[0].op_type)
        role = _least_quantized([_role(node, depth, before_weighted) for node in nodes])
        layers.append(Layer(name, op, role, shape[::-1] if op == "MatMul" else shape, macs[name], _source(name, nodes, sources)))
    return layers


def layers_beside_the_state(graph: ir.Graph) -> frozenset[str]:
    """Return the weighted layers whose inputs do not depend on the state, such as those that embed a prompt for attention."""
    depth = _weighted_depth(graph)
    return frozenset(name for name, nodes in weighted_nodes(graph).items() if all(_input(node, depth) is None for node in nodes))


def _input(node: ir.Node, depth: Mapping[ir.Value, int | None]) -> int | None:
    x = node.inputs[0]
    assert x is not None
    return depth[x]


def _source(name: str, nodes: Sequence[ir.Node], sources: dict[ir.Value, str]) -> str:
    """Source of a layer. A layer called on several tensors is its own source: it needs the range of all of them, seen only by its calls."""
    x, *others = dict.fromkeys(node.inputs[0] for node in nodes)
    assert x is not None
    return name if others else sources.setdefault(x, name)


def _least_quantized(roles: Collection[Role]) -> Role:
    """The role of a layer that is called in several roles."""
    return next(role for role in _LEAST_QUANTIZED_FIRST if role in roles)


def _role(node: ir.Node, depth: Mapping[ir.Value, int | None], before_weighted: set[ir.Node]) -> Role:
    reached = _input(node, depth)
    if reached is None:
        return "embedding" if node.op_type == "Gemm" else "condition"
    return "boundary" if reached == 0 or node not in before_weighted else "inner"


def _weighted_depth(graph: ir.Graph) -> dict[ir.Value, int | None]:
    """Largest number of weighted layers between the state and each value; None if the value does not depend on the state's values."""
    depth: dict[ir.Value, int | None] = {value: 0 if value.name == STATE else None for value in graph.inputs}
    depth |= dict.fromkeys(graph.initializers.values())
    for node in graph:
        known = [depth[value] for value in node.inputs if value is not None]
        reached = [d for d in known if d is not None] if node.op_type != "Shape" else []
        own = 1 if layer_name(node) is not None else 0
        depth |= dict.fromkeys(node.outputs, max(reached) + own if reached else None)
    return depth


def _before_weighted(graph: ir.Graph) -> set[ir.Node]:
    """Nodes with a weighted layer between them and the output."""
    marked: set[ir.Node] = set()
    for node in reversed(graph):
        users = [use.node for value in node.outputs for use in value.uses()]
        if any(layer_name(user) is not None or user in marked for user in users):
            marked.add(node)
    return marked
