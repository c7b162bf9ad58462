"""Writes low-rank branches beside the linear layers of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from calib.quantizers.low_rank_branch import LowRankBranch
from ptqd_export.graph.reading.constants import constant
from ptqd_export.graph.reading.graph_layers import weighted_nodes

DOWN, UP = ".low_rank.down", ".low_rank.up"
"""Suffixes that make the names of a branch's factors, [inputs, rank] and [rank, outputs], from the name of its layer."""


class AddLowRankBranches(ir.passes.InPlacePass):
    """Adds `x down up` to the product of each of the given layers, by these rules:

    1. the branch is two MatMuls on the layer's own input. Quantizers that are inserted later leave it in float;
    2. the sum takes the place of the product, so a bias that follows as a node of its own is added to the sum;
    3. a layer that is called twice has a branch at each call, with the same factors.

    Args:
        branches: branches by the names of their layers, which are linear.

    Requires: initializers named by `ParameterNames` and `TransposedWeights`, no quantizers. Ensures: the factors are the initializers
    `<layer>.low_rank.down` and `<layer>.low_rank.up`.
    """

    def __init__(self, branches: Mapping[str, LowRankBranch]) -> None:
        super().__init__()
        self._branches = branches

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = weighted_nodes(model.graph) if self._branches else {}
        for name, branch in self._branches.items():
            for node in nodes[name]:
                _add(model.graph, node, name, branch)
        return ir.passes.PassResult(model, bool(self._branches))


def _add(graph: ir.Graph, node: ir.Node, name: str, branch: LowRankBranch) -> None:
    x, product = node.inputs[0], node.outputs[0]
    assert x is not None
    down, up = (constant(graph, f"{name}{suffix}", factor.numpy()) for suffix, factor in ((DOWN, branch.down), (UP, branch.up)))
    readers, tape = list(product.uses()), ir.tape.Tape()
    narrow = tape.op("MatMul", [x, down])
    wide = tape.op("MatMul", [narrow, up])
    total = tape.op("Add", [product, wide])
    narrow.type = wide.type = total.type = product.type
    narrow.shape = None if x.shape is None else ir.Shape([*x.shape[:-1], branch.rank])
    wide.shape = total.shape = product.shape
    for reader in readers:  # rule 2
        reader.node.replace_input_with(reader.idx, total)
    graph.insert_after(node, tape.nodes)


def with_branch(product: ir.Value, name: str) -> ir.Value:
    """Return the sum of a layer's product and its branch; the product itself if the layer has no branch."""
    for use in product.uses():
        other = use.node.inputs[1] if use.node.op_type == "Add" and use.idx == 0 else None
        wide = None if other is None else other.producer()
        if wide is not None and wide.op_type == "MatMul" and _stem(wide.inputs[1]) == f"{name}{UP}":
            return use.node.outputs[0]
    return product


def _stem(value: ir.Value | None) -> str | None:
    return None if value is None or value.name is None else value.name.removesuffix(".half")
