"""Compute what does not depend on the inputs, and drop what does not reach the output."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import UsageError, first_line, some_of
from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode, OperatorCall, Value
from ptqd_export.models.onnx_graph.operators.operator_table import OPERATORS, Operators
from ptqd_export.models.onnx_graph.reading.onnx_file import OnnxGraph

MOST_VALUES = 2**26
"""Values of the largest constant that is computed here; a larger one stays a node."""

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
CONTROL = ("If", "Loop", "Scan")


def as_values(constants: Mapping[str, NDArray[np.generic]]) -> dict[str, Value]:
    """Return constants as a running graph has them: lists of whole numbers on the host, everything else as tensors."""
    return {name: as_value(array) for name, array in constants.items()}


def as_value(array: NDArray[np.generic]) -> Value:
    if array.dtype.kind in "iub" and array.ndim <= 1:
        return array.astype(object)
    return torch.from_numpy(np.array(array, order="C"))


def folded(
    graph: OnnxGraph,
    output: str,
    values: Mapping[str, Value] | None = None,
    operators: Operators = OPERATORS,
    kept: Collection[str] = (),
    also: Sequence[str] = (),
) -> tuple[tuple[OnnxNode, ...], dict[str, Value]]:
    """Return the nodes that compute an output from the inputs, and the constants that they read.

    Args:
        graph: the graph.
        output: name of the output.
        values: values of the constants; None takes those of `as_values`.
        operators: functions of the operators.
        kept: operators that stay nodes although their inputs are constant.
        also: names of further values to compute.

    Raises:
        UsageError: operators are not supported; the message names all of them.
    """
    values, nodes = dict(values or as_values(graph.constants)), list[OnnxNode]()
    with torch.no_grad():
        for node in graph.nodes:
            found = None if node.op in kept else _folded(node, values, operators)
            if found is None:
                nodes.append(node)
            else:
                values |= found
    alive = reaching(nodes, [output, *also])
    _check_supported(alive, operators)
    read = {name for node in alive for name in node.inputs} | {output, *also}
    return alive, {name: value for name, value in values.items() if name in read}


def check_operators(graph: OnnxGraph, output: str) -> None:
    """Check that an output can be computed, without the graph's constants. Raises the error of `folded`."""
    _check_supported(reaching(graph.nodes, [output]), OPERATORS)


def reaching(nodes: Sequence[OnnxNode], names: Iterable[str]) -> tuple[OnnxNode, ...]:
    """Return the nodes that the named values depend on."""
    wanted, alive = set(names), list[OnnxNode]()
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            alive.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(alive))


def _folded(node: OnnxNode, values: Mapping[str, Value], operators: Operators) -> dict[str, Value] | None:
    """Return the outputs of a node whose inputs are all constant; None for any other node."""
    operator = operators.get((node.domain, node.op))
    known = all(name in values for name in node.inputs if name)
    if operator is None or not known or not node.inputs or _grows(node, values):
        return None
    call = OperatorCall(node, [values[name] if name else None for name in node.inputs], torch.float32, torch.device("cpu"))
    try:
        found = operator(call)
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        raise UsageError(
            "A constant of the graph cannot be computed.", found=f"{node}: {first_line(error)}", mend="export the network again"
        ) from error
    outputs = found if isinstance(found, tuple) else (found,)
    return dict(zip(node.outputs, outputs, strict=False))


def _grows(node: OnnxNode, values: Mapping[str, Value]) -> bool:
    """Return whether a node may make an array far larger than its inputs."""
    if node.op in ("Expand", "Tile", "ConstantOfShape"):
        return math.prod(int(one) for one in np.asarray(values[node.inputs[-1]]).reshape(-1) if int(one) > 0) > MOST_VALUES
    return False


def _check_supported(nodes: Sequence[OnnxNode], operators: Operators) -> None:
    others = sorted({f"{node.domain}.{node.op}" if node.domain else node.op for node in nodes if (node.domain, node.op) not in operators})
    if not others:
        return
    reasons = [
        *(["random operators: a graph must give the same output for the same inputs"] if set(others) & set(RANDOM) else []),
        *(["control flow: export the network without it"] if set(others) & set(CONTROL) else []),
        *(
            ["a graph that is quantized already: take the one in float"]
            if {"QuantizeLinear", "DynamicQuantizeLinear"} & set(others)
            else []
        ),
    ]
    raise UsageError(
        "The graph has operators that are not supported.",
        found=some_of(others, 100) + "".join(f"; {reason}" for reason in reasons),
        expected="the operators of docs/onnx-models.md",
        mend="export the network again without them, or wrap its PyTorch code in a model.factory",
    )
