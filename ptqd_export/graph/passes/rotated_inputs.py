"""Rotates the inputs of linear layers in a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from engines.networks.lora.hadamard import hadamard
from ptqd_export.graph.reading.constants import constant
from ptqd_export.graph.reading.graph_layers import weighted_nodes


class RotateInputs(ir.passes.InPlacePass):
    """Multiplies blocks of the channels that linear layers read by a Hadamard matrix, like
    `calib.quantizers.preparation.rotation.rotate_inputs` in torch. Layers that read the same value share the nodes.

    Args:
        blocks: size of the blocks of each layer's input, by the layer's name.

    Requires: initializers named by `ParameterNames` and `TransposedWeights`; known ranks. The weights are rotated elsewhere.
    """

    def __init__(self, blocks: Mapping[str, int]) -> None:
        super().__init__()
        self._blocks = blocks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = weighted_nodes(model.graph) if self._blocks else {}
        found: dict[tuple[ir.Value, int], ir.Value] = {}
        for name, size in self._blocks.items():
            for node in nodes[name]:
                x = node.inputs[0]
                assert x is not None
                if (x, size) not in found:
                    found[x, size] = _rotated(model.graph, x, size)
                node.replace_input_with(0, found[x, size])
        return ir.passes.PassResult(model, bool(self._blocks))


def _rotated(graph: ir.Graph, x: ir.Value, size: int) -> ir.Value:
    """Return a rotated value, computed right after its producer so that all layers that read the value can share it."""
    assert x.shape is not None
    channels = x.shape[-1]
    leading = [0] * (x.shape.rank() - 1)  # 0 keeps the dimension
    tape = ir.tape.Tape()
    matrix = constant(graph, f"rotation.{size}", hadamard(size))
    blocks, whole = ([*leading, *end] for end in ([-1, size], [channels]))
    out = tape.op("Reshape", [x, _shape(graph, blocks)])
    out = tape.op("MatMul", [out, matrix])
    out = tape.op("Reshape", [out, _shape(graph, whole)])
    for node in tape.nodes:
        node.outputs[0].type = x.type
    inner = ir.Shape([*x.shape[:-1], channels // size if isinstance(channels, int) else None, size])
    tape.nodes[0].outputs[0].shape = tape.nodes[1].outputs[0].shape = inner
    out.shape = x.shape
    producer = x.producer()
    if producer is None:
        graph.insert_before(graph[0], tape.nodes)
    else:
        graph.insert_after(producer, tape.nodes)
    return out


def _shape(graph: ir.Graph, sizes: list[int]) -> ir.Value:
    return constant(graph, f"rotation.shape.{'.'.join(map(str, sizes))}", np.array(sizes, np.int64))
