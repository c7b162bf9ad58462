"""Find group norms, which exporters write as instance norms of reshaped tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode, Value

NEWEST = 21
"""Version of GroupNormalization with one scale for each channel."""


def with_group_norms(nodes: Sequence[OnnxNode], constants: Mapping[str, Value], output: str) -> tuple[list[OnnxNode], dict[str, Value]]:
    """Return the nodes with a GroupNormalization in place of every chain of

    1. a Reshape to [batch, groups, -1],
    2. an InstanceNormalization with scales of 1 and biases of 0,
    3. a Reshape to the shape that the tensor had,
    4. a Mul and an Add with constants for each channel, if they follow,

    and the constants that these nodes read in addition.
    """
    chains = _Chains(nodes, constants, output)
    found = {id(chain[-1]): chain for node in nodes if node.op == "InstanceNormalization" and (chain := chains.around(node)) is not None}
    inside = {id(node) for chain in found.values() for node in chain[:-1]}
    added: dict[str, Value] = {}
    kept = []
    for node in nodes:
        chain = found.get(id(node))
        if chain is not None:
            kept.append(_norm(chain, constants, added))
        elif id(node) not in inside:
            kept.append(node)
    return kept, added


class _Chains:
    def __init__(self, nodes: Sequence[OnnxNode], constants: Mapping[str, Value], output: str) -> None:
        self._constants, self._output = constants, output
        self._producer = {name: node for node in nodes for name in node.outputs}
        self._users: dict[str, list[OnnxNode]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)

    def around(self, norm: OnnxNode) -> list[OnnxNode] | None:
        """Return the chain around an instance norm, in its order; None if it is no group norm."""
        before, after = self._producer.get(norm.inputs[0]), self._only_user(norm, "Reshape")
        if before is None or before.op != "Reshape" or after is None or not self._is_plain(norm):
            return None
        target = self._constants.get(before.inputs[1]) if len(before.inputs) > 1 else None
        if target is None or target.shape != (3,) or self._user_count(before) != 1:
            return None
        chain = [before, norm, after]
        for op in ("Mul", "Add"):
            following = self._only_user(chain[-1], op)
            if following is None or channel_constant(following, self._constants) is None:
                break
            chain.append(following)
        return chain[:3] if len(chain) == 4 else chain

    def _only_user(self, node: OnnxNode, op: str) -> OnnxNode | None:
        (name,) = node.outputs
        users = self._users.get(name, [])
        fits = len(users) == 1 and users[0].op == op and name != self._output
        return users[0] if fits else None

    def _user_count(self, node: OnnxNode) -> int:
        return len(self._users.get(node.outputs[0], []))

    def _is_plain(self, norm: OnnxNode) -> bool:
        scale, bias = (self._constants.get(name) for name in norm.inputs[1:3])
        return isinstance(scale, Tensor) and isinstance(bias, Tensor) and bool((scale == 1).all()) and bool((bias == 0).all())


def channel_constant(node: OnnxNode, constants: Mapping[str, Value]) -> str | None:
    """Return the name of the constant [channels, 1, ...] that a node multiplies by or adds; None for any other node."""
    names = [name for name in node.inputs if isinstance(constants.get(name), Tensor)]
    if len(names) != 1:
        return None
    sizes = constants[names[0]].shape
    return names[0] if len(sizes) >= 2 and sizes[-1] == 1 and sum(size > 1 for size in sizes) == 1 else None


def _norm(chain: Sequence[OnnxNode], constants: Mapping[str, Value], added: dict[str, Value]) -> OnnxNode:
    before, norm, *_ = chain
    groups = int(np.asarray(constants[before.inputs[1]])[1])
    scaled = len(chain) == 5
    names = []
    for node, kind in zip(chain[3:], ("weight", "bias"), strict=False):
        name = channel_constant(node, constants)
        assert name is not None
        value = constants[name]
        assert isinstance(value, Tensor)
        flat = name if name.endswith(f".{kind}") else f"{chain[-1].name or norm.name}.{kind}"
        added[flat] = torch.flatten(value).contiguous()
        names.append(flat)
    inputs = (before.inputs[0], *names) if scaled else (before.inputs[0],)
    attributes = {"num_groups": groups, "epsilon": norm.attributes.get("epsilon", 1e-5)}
    return OnnxNode(chain[-1].name, "GroupNormalization", "", NEWEST, inputs, chain[-1].outputs, attributes)
