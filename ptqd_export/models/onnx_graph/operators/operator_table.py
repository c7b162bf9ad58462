"""Every operator that is supported, by domain and type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from ptqd_export.models.onnx_graph.operators.elementwise import ELEMENTWISE
from ptqd_export.models.onnx_graph.operators.fused_operators import ATTENTION, FUSED, FUSED_PARTS, MICROSOFT, PARTS
from ptqd_export.models.onnx_graph.operators.operator_call import OperatorCall, Result
from ptqd_export.models.onnx_graph.operators.products import PRODUCTS
from ptqd_export.models.onnx_graph.operators.reductions import REDUCTIONS
from ptqd_export.models.onnx_graph.operators.shape_operators import SHAPES

Operators: TypeAlias = Mapping[tuple[str, str], Callable[[OperatorCall], Result]]
"""Functions of operators by domain and type."""

OPERATORS: Operators = {
    **{("", name): function for table in (ELEMENTWISE, SHAPES, REDUCTIONS, PRODUCTS, ATTENTION) for name, function in table.items()},
    **{(MICROSOFT, name): function for name, function in FUSED.items()},
    **{(PARTS, name): function for name, function in FUSED_PARTS.items()},
}

HOST_INPUTS: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,), "Pad": (2,), "Range": (0, 1, 2)}
"""Inputs that are numbers on the host even where they are floats, by operator and position."""
