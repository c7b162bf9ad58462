"""A node of a graph, and one call of its operator.

While a graph runs, a value is a tensor, or a small array on the host: sizes, axes and indices. Sizes must not become tensors, because torch
could then no longer trace which of them is the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import PtqdError

HostArray: TypeAlias = NDArray[Any]
"""Numbers on the host. An array of objects holds ints, bools, floats, and sizes that torch keeps as symbols while it traces."""

Value: TypeAlias = Tensor | HostArray
Result: TypeAlias = Value | tuple[Value, ...]

STANDARD = ("", "ai.onnx")
"""Names of the standard domain."""


@dataclass(frozen=True)
class OnnxNode:
    """One node, as plain data.

    Attributes:
        name: name of the node; exporters leave it empty at times.
        op: type of the operator.
        domain: domain of the operator, empty for the standard one.
        version: version of the domain's operators.
        inputs: names of the inputs; empty for one that is left out.
        outputs: names of the outputs; empty for one that nothing reads.
        attributes: numbers, texts, lists of them, and arrays.
    """

    name: str
    op: str
    domain: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name or ', '.join(self.outputs)} ({self.op})"


@dataclass(frozen=True)
class OperatorCall:
    """A node with the values of its inputs.

    Attributes:
        node: the node.
        inputs: values by position; None for one that is left out.
        dtype: type of all float values, whatever types the graph names.
        device: where tensors are made.
    """

    node: OnnxNode
    inputs: Sequence[Value | None]
    dtype: torch.dtype
    device: torch.device

    @property
    def version(self) -> int:
        return self.node.version

    @property
    def on_host(self) -> bool:
        """Whether every input is a host array."""
        return all(not isinstance(value, Tensor) for value in self.inputs)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.node.attributes.get(name, default)

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise PtqdError("A node of the graph lacks an input.", found=f"{self.node}: input {index}")
        return found

    def tensor(self, index: int) -> Tensor:
        return as_tensor(self.value(index), self.dtype, self.device)

    def optional(self, index: int) -> Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[Tensor]:
        return [self.tensor(index) for index in range(len(self.inputs))]

    def host(self, index: int) -> HostArray:
        """Return an input whose numbers decide shapes.

        Raises:
            PtqdError: it is computed from the values of tensors.
        """
        found = self.value(index)
        if isinstance(found, Tensor):
            raise PtqdError(
                "The graph computes a size from values, which no traced network can follow.",
                found=f"{self.node}: input {index}",
                expected="sizes that follow from shapes alone",
                mend="export the network again with constant sizes",
            )
        return found

    def numbers(self, index: int, name: str) -> list[Any] | None:
        """Return a list that newer operators take as an input and older ones as an attribute; None if it is left out."""
        if self.has(index):
            return list(self.host(index).reshape(-1))
        found = self.get(name)
        return None if found is None else list(found)


def as_tensor(value: Value, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a value as a tensor; floats get the given type, whole numbers are int64."""
    if isinstance(value, Tensor):
        return value
    numbers = [plain(one) for one in value.reshape(-1)]
    kind = torch.bool if all(isinstance(one, bool) for one in numbers) and numbers else torch.int64
    if any(isinstance(one, float | torch.SymFloat) for one in numbers) or value.dtype.kind == "f":
        kind = dtype
    if any(isinstance(one, torch.SymInt | torch.SymFloat) for one in numbers):
        scalars = [torch.scalar_tensor(one, dtype=kind, device=device) for one in numbers]
        return torch.stack(scalars).reshape(value.shape)
    return torch.tensor(numbers, dtype=kind, device=device).reshape(value.shape)


def plain(number: Any) -> Any:
    """Return a number of numpy as Python's."""
    return number.item() if isinstance(number, np.generic) else number


def host_array(numbers: Sequence[Any] | HostArray, shape: Sequence[int] | None = None) -> HostArray:
    """Return numbers as an array of objects, [len(numbers)] or of the given shape."""
    found = np.empty(len(numbers), dtype=object)
    for index, number in enumerate(numbers):
        found[index] = plain(number)
    return found if shape is None else found.reshape(tuple(shape))
