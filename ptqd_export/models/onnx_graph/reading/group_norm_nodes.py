"""Find group norms, which exporters write as instance norms of reshaped tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode, Value
from ptqd_export.models.onnx_graph.reading.folded import reaching

VERSION = 21
"""Version of GroupNormalization with one scale for each channel."""

_OTHER_SHAPES = ("Transpose", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Split", "Slice")
"""Operators behind which the second axis need not be the channels."""


def with_group_norms(nodes: Sequence[OnnxNode], constants: Mapping[str, Value], output: str) -> tuple[list[OnnxNode], dict[str, Value]]:
    """Return the nodes with a GroupNormalization in place of every chain of

    1. a Reshape to [batch, groups, -1],
    2. an InstanceNormalization with scales of 1 and biases of 0,
    3. a Reshape back; it stays, unless it is to the very shape that the tensor had,
    4. a Mul and an Add with constants for each channel,

    and the constants that these nodes read in addition.
    """
    chains = _Chains(nodes, constants, output)
    found = [chain for node in nodes if node.op == "InstanceNormalization" and (chain := chains.around(node)) is not None]
    last, inside = {id(chain.add): chain for chain in found}, {id(node) for chain in found for node in chain.nodes}
    added: dict[str, Value] = {}
    kept = list[OnnxNode]()
    for node in nodes:
        if id(node) in last:
            kept += last[id(node)].norm(constants, added)
        elif id(node) not in inside:
            kept.append(node)
    return list(reaching(kept, [output])), added


@dataclass(frozen=True)
class _Chain:
    """A group norm as its nodes; `restores` says whether the second Reshape is to the very shape that the tensor had."""

    before: OnnxNode
    instance: OnnxNode
    after: OnnxNode
    mul: OnnxNode
    add: OnnxNode
    restores: bool

    @property
    def nodes(self) -> tuple[OnnxNode, ...]:
        return self.before, self.instance, self.after, self.mul, self.add

    def norm(self, constants: Mapping[str, Value], added: dict[str, Value]) -> list[OnnxNode]:
        names = []
        for node, kind in ((self.mul, "weight"), (self.add, "bias")):
            name = channel_constant(node, constants)
            assert name is not None
            value = constants[name]
            assert isinstance(value, Tensor)
            flat = f"{self.add.name or self.add.outputs[0]}.{kind}"
            added[flat] = torch.flatten(value).contiguous()
            names.append(flat)
        (out,) = self.add.outputs
        normal = out if self.restores else f"{out}.normal"
        attributes = {
            "num_groups": int(np.asarray(constants[self.before.inputs[1]])[1]),
            "epsilon": self.instance.attributes.get("epsilon", 1e-5),
        }
        norm = OnnxNode(self.add.name, "GroupNormalization", "", VERSION, (self.before.inputs[0], *names), (normal,), attributes)
        if self.restores:
            return [norm]
        back = self.after
        return [norm, OnnxNode(back.name, "Reshape", "", back.version, (normal, *back.inputs[1:]), (out,), back.attributes)]


class _Chains:
    def __init__(self, nodes: Sequence[OnnxNode], constants: Mapping[str, Value], output: str) -> None:
        self._constants, self._output = constants, output
        self._producer = {name: node for node in nodes for name in node.outputs}
        self._users: dict[str, list[OnnxNode]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)

    def around(self, instance: OnnxNode) -> _Chain | None:
        """Return the chain around an instance norm; None if it is no group norm."""
        before, after = self._producer.get(instance.inputs[0]), self._only_user(instance, "Reshape")
        if before is None or before.op != "Reshape" or after is None or not self._is_plain(instance) or len(after.inputs) < 2:
            return None
        target = self._constants.get(before.inputs[1]) if len(before.inputs) > 1 else None
        mul = self._only_user(after, "Mul")
        add = None if mul is None else self._only_user(mul, "Add")
        if target is None or target.shape != (3,) or len(self._users.get(before.outputs[0], [])) != 1 or mul is None or add is None:
            return None
        scale, shift = (channel_constant(node, self._constants) for node in (mul, add))
        if scale is None or shift is None:
            return None
        x, shape = before.inputs[0], self._producer.get(after.inputs[1])
        restores = shape is not None and shape.op == "Shape" and shape.inputs[0] == x and not shape.attributes.get("start")
        channels = self._constants[scale]
        assert isinstance(channels, Tensor)
        same = restores or self._has_channels(x, channels.numel())
        return _Chain(before, instance, after, mul, add, restores) if same else None

    def _has_channels(self, name: str, channels: int) -> bool:
        """Return whether the second axis of a tensor is that of the channels, as far as its producer shows."""
        node = self._producer.get(name)
        if node is None or node.op in _OTHER_SHAPES:
            return False
        if node.op != "Reshape":
            return True
        target = self._constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        return target is not None and target.shape[0] >= 3 and int(np.asarray(target)[1]) == channels

    def _only_user(self, node: OnnxNode, op: str) -> OnnxNode | None:
        name = node.outputs[0]
        users = self._users.get(name, [])
        return users[0] if len(users) == 1 and users[0].op == op and name != self._output else None

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
