"""The nodes that take the place of one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode

COUNTED_SPLIT = 18
"""First version of the standard in which a Split must say how many parts it makes."""


class NodeParts:
    """Collects nodes that compute what one node computes.

    Args:
        node: the node.
        version: version of the standard operators in its graph.
        half: whether values between the nodes may have 16 bits. The constants then follow their type.
    """

    def __init__(self, node: OnnxNode, version: int, *, half: bool = False) -> None:
        self.node, self.nodes, self.constants = node, list[OnnxNode](), dict[str, NDArray[Any]]()
        self._version, self._half = version, half

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        return self._add(op, inputs, [self._name(op)], domain, attributes)

    def split(self, x: str, axis: int, parts: int) -> tuple[str, ...]:
        """Add a Split of an axis into parts of one size; return their names."""
        counted = {"num_outputs": parts} if self._version >= COUNTED_SPLIT else {}
        name = self._name("Split")
        outputs = [f"{name}.{index}" for index in range(parts)]
        self._add("Split", [x], outputs, "", {"axis": axis, **counted})
        return tuple(outputs)

    def constant(self, value: Any, like: str | None = None) -> str:
        """Add a constant: whole numbers, or float32 of the type of the value `like`; return its name."""
        name = f"{self._name('constant')}.{len(self.constants)}"
        array = np.asarray(value)
        self.constants[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return name if like is None else self.like(name, like)

    def like(self, value: str, other: str) -> str:
        """Return a value in the type of another."""
        return self.add("CastLike", value, other) if self._half else value

    def end(self, *values: str) -> None:
        """Give values the names of the node's outputs, in their order; an output that nothing reads has none."""
        ends = {value: name for value, name in zip(values, self.node.outputs, strict=False) if name}

        def named(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(ends.get(name, name) for name in names)

        self.nodes = [replace(one, inputs=named(one.inputs), outputs=named(one.outputs)) for one in self.nodes]

    def _add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str, attributes: dict[str, Any]) -> str:
        self.nodes.append(OnnxNode(self.node.name, op, domain, self._version, tuple(inputs), tuple(outputs), attributes))
        return outputs[0]

    def _name(self, kind: str) -> str:
        return f"{self.node.outputs[0]}.{kind}.{len(self.nodes)}"
