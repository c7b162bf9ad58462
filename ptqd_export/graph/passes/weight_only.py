"""Stores the weights of linear layers and tables of embeddings in 8 bits, for networks that compute in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from calib.quantizers.scale_search import weight_scale
from ptqd_export.graph.reading.constants import constant

BITS = 8

TABLE_ROWS = 1024
"""Rows from which a table of embeddings is stored in 8 bits: those of words are, those of positions are not."""

ROWS_AT_ONCE = 4096
"""Rows of a weight that are rounded at a time, so that only few are held twice."""


class WeightOnly(ir.passes.InPlacePass):
    """Stores weights as INT8, symmetric, with a scale for each output channel or row of a table. Each kind is stored in its own way.

    1. The second inputs of MatMul and Gemm: behind a DequantizeLinear.
    2. The tables that Gather reads: rows are read as integers and scaled then, so that no table in float exists at run time.

    Requires: float32 weights. Ensures: all else is unchanged; weights that `round_weights` rounded keep their values.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        weights = {value: None for node in graph for value in _weight(node)}
        readers = {node: table for node in graph for table in _table(node)}
        for value in weights:
            _store_weight(graph, value)
        for node, table in readers.items():
            _store_table(graph, node, table)
        for value in {**weights, **dict.fromkeys(readers.values())}:
            del graph.initializers[str(value.name)]
        return ir.passes.PassResult(model, bool(weights or readers))


def _store_weight(graph: ir.Graph, value: ir.Value) -> None:
    """Apply rule 1."""
    (reader, _), *_ = value.uses()
    axis = 0 if "transB" in reader.attributes and reader.attributes.get_int("transB") else 1
    integers, scale = _stored(value, axis)
    zeros = np.zeros(len(scale), np.int8)  # ONNX Runtime fails on a missing zero point
    parts: Mapping[str, NDArray[Any]] = {"int": integers, "scale": scale, "zero_point": zeros}
    stored = [constant(graph, f"{value.name}.{name}", array) for name, array in parts.items()]
    tape = ir.tape.Tape()
    value.replace_all_uses_with(tape.op("DequantizeLinear", stored, attributes={"axis": axis}))
    graph.insert_before(graph[0], tape.nodes)


def _store_table(graph: ir.Graph, reader: ir.Node, table: ir.Value) -> None:
    """Apply rule 2 to one of the nodes that read a table."""
    names = [f"{table.name}.{part}" for part in ("int", "scale")]
    if names[0] not in graph.initializers:
        integers, scale = _stored(table, 0)
        constant(graph, names[0], integers)
        constant(graph, names[1], scale[:, None])
    tape = ir.tape.Tape()
    rows, scales = (tape.op("Gather", [graph.initializers[name], reader.inputs[1]]) for name in names)
    scaled = tape.op("Mul", [tape.op("Cast", [rows], attributes={"to": ir.DataType.FLOAT}), scales])
    graph.insert_before(reader, tape.nodes)
    reader.outputs[0].replace_all_uses_with(scaled)
    graph.remove(reader, safe=True)


def _stored(value: ir.Value, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the integers of a weight, and a scale for each place along an axis."""
    assert value.const_value is not None
    rows = np.moveaxis(value.const_value.numpy(), axis, 0)
    parts = [_integers(np.array(rows[begin : begin + ROWS_AT_ONCE])) for begin in range(0, len(rows), ROWS_AT_ONCE)]
    integers, scales = (np.concatenate(each) for each in zip(*parts, strict=True))
    return np.ascontiguousarray(np.moveaxis(integers, 0, axis)), scales


def _integers(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    weight = torch.from_numpy(rows)
    quantizer = weight_scale(weight, BITS, "max")
    return quantizer.integers(weight).numpy(), quantizer.scale.numpy()


def _weight(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the weight of a linear layer, or nothing."""
    value = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
    return (value,) if value is not None and _rows(value) else ()


def _table(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the large table of embeddings that a node looks rows up in, or nothing."""
    value = node.inputs[0] if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 else None
    return (value,) if value is not None and value.dtype == ir.DataType.FLOAT and _rows(value) >= TABLE_ROWS else ()


def _rows(value: ir.Value) -> int:
    """Return the rows of a known matrix; 0 for other values."""
    shape = value.const_value.shape.numpy() if value.is_initializer() and value.const_value is not None else ()
    return shape[0] if len(shape) == 2 else 0


def round_weights(network: nn.Module) -> None:
    """Round the weights of a network, in place, to the values that `WeightOnly` stores."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Embedding) and layer.num_embeddings >= TABLE_ROWS):
                for rows in layer.weight.split(ROWS_AT_ONCE):
                    quantizer = weight_scale(rows, BITS, "max")
                    rows.copy_(quantizer.dequantize(quantizer.integers(rows)))
