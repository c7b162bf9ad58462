"""Replaces the values of a graph's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptqd_export.graph.reading.transposed_weights import TRANSPOSED, transposed


def parameter_name(initializer: str) -> str:
    """The network's name for the parameter in an initializer, transposed or not."""
    return initializer.removesuffix(TRANSPOSED)


class ParameterValues(ir.passes.InPlacePass):
    """Replaces the values of the named parameters, transposed where the initializers are.

    Args:
        values: values by parameter name, in torch's order; parameters that the graph does not contain are ignored.

    Requires: initializers named by `ParameterNames` and `TransposedWeights`.
    """

    def __init__(self, values: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self._values = values

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        written = 0
        for name, initializer in model.graph.initializers.items():
            value = self._values.get(parameter_name(name))
            if value is not None and initializer.const_value is not None:
                stored = ir.tensor(value, name=name)
                initializer.const_value = transposed(stored) if name.endswith(TRANSPOSED) else stored
                written += 1
        return ir.passes.PassResult(model, written > 0)
