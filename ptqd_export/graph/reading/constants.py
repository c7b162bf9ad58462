"""Named constants of a graph, each stored once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, value: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """Return the initializer of this name, created on first use.

    Args:
        graph: graph that the initializer belongs to.
        name: name that is unique to the content.
        value: the content; a tensor from `computed` if it is large.
    """
    if name not in graph.initializers:
        tensor = value if isinstance(value, ir.TensorProtocol) else ir.tensor(value, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def computed(values: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: Sequence[int]) -> ir.LazyTensor:
    """Return a tensor whose values are computed whenever they are read, and not kept. A graph of such tensors holds no weights.

    Args:
        values: computes the values.
        dtype, shape: their type and shape.
    """
    return ir.LazyTensor(values, dtype, ir.Shape(shape))
