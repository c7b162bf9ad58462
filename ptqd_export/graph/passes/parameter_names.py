"""Gives initializers the names that the network's state dict uses."""

from __future__ import annotations

import onnx_ir as ir


class ParameterNames(ir.passes.InPlacePass):
    """Strips a prefix from the names of initializers.

    Requires: nothing. Ensures: an initializer traced from `network.conv_in.weight` is called `conv_in.weight`.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        renamed = [name for name in model.graph.initializers if name.startswith(self.prefix)]
        for name in renamed:
            model.graph.initializers[name].name = name.removeprefix(self.prefix)
        return ir.passes.PassResult(model, bool(renamed))
