"""Read an ONNX file. Nothing in it is run, and it reads no file outside of its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from engines.bundle.bundle_files import is_plain
from engines.errors import UsageError
from engines.untrusted.external_data import external_files, graph_files
from ptqd_export.models.onnx_graph.operators.operator_call import STANDARD, OnnxNode

OLDEST = 7
"""Oldest supported version of the standard operators: before, broadcasting was spelled out in attributes."""

Size: TypeAlias = int | str | None
"""A size of an axis: fixed, named, or not stated."""


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph.

    Attributes:
        name: its name.
        dtype: type of its numbers, as ONNX calls it: `FLOAT`, `INT64` and so on.
        shape: its sizes; None if the graph does not even state how many axes there are.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...] | None

    @property
    def is_float(self) -> bool:
        return self.dtype in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")

    def __str__(self) -> str:
        sizes = "?" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype.lower()} [{sizes}]"


@dataclass(frozen=True)
class OnnxGraph:
    """A graph as plain data.

    Attributes:
        inputs: what the graph is called with.
        outputs: what it returns.
        nodes: its nodes, in an order in which they can run.
        constants: arrays by name, of any type; floats of every width are float32.
        version: version of the standard operators.
        half: whether weights of the file are in 16 bits.
    """

    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, NDArray[Any]]
    version: int = OLDEST
    half: bool = False


def read_interface(path: Path) -> tuple[tuple[GraphValue, ...], tuple[GraphValue, ...]]:
    """Return the inputs and outputs of a graph, without its weights. Raises the errors of `read_onnx`."""
    graph = read_model(path).graph
    return tuple(_inputs(graph)), tuple(_value(one) for one in graph.outputs)


def read_onnx(path: Path) -> OnnxGraph:
    """Read a graph with its weights.

    Raises:
        UsageError: the file is missing or no ONNX graph, its weights are not beside it, or its operators are too old.
    """
    model, read = _plain(path)
    graph = model.graph
    constants = {name: _array(value.const_value) for name, value in graph.initializers.items() if value.const_value is not None}
    constants |= {node.outputs[0].name: _constant(node) for node in graph if node.op_type == "Constant" and node.outputs[0].name}
    return replace(read, constants=constants)


def read_nodes(path: Path) -> OnnxGraph:
    """Read a graph without its constants. Raises the errors of `read_onnx`."""
    return _plain(path)[1]


def _plain(path: Path) -> tuple[ir.Model, OnnxGraph]:
    """Return the graph of a file without functions, and what is read of it, except the constants."""
    model = read_model(path)
    common.InlinePass()(model)
    version = model.opset_imports.get("", OLDEST)
    if version < OLDEST:
        raise UsageError(
            "The graph's operators are too old.",
            found=f"{path}: opset {version}",
            expected=f"opset {OLDEST} or newer",
            mend="convert it with onnx.version_converter.convert_version, or export it again",
        )
    graph = model.graph
    nodes = tuple(plain_node(node, model.opset_imports) for node in graph if node.op_type != "Constant")
    inputs, outputs = tuple(_inputs(graph)), tuple(_value(one) for one in graph.outputs)
    return model, OnnxGraph(inputs, outputs, nodes, {}, version, in_16_bits(model))


def in_16_bits(model: ir.Model) -> bool:
    """Return whether weights or inputs of a graph are in 16 bits."""
    values = (*model.graph.initializers.values(), *model.graph.inputs)
    return any(value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for value in values)


def onnx_files(path: Path) -> tuple[Path, ...]:
    """Return the file of a graph and those that hold its weights."""
    return tuple(graph_files(path))


def read_model(path: Path) -> ir.Model:
    """Return the graph as it is in its file. Raises the errors of `read_onnx`."""
    if not path.is_file():
        raise UsageError(
            "The graph is missing.", found=f"no file {path}", mend="correct model.onnx, which is relative to the plan, or --model"
        )
    try:
        outside = [name for name in external_files(path) if not is_plain(name) or not (path.parent / name).is_file()]
        if outside:
            raise UsageError(
                "The graph's weights are not beside it.",
                found=f"{path} refers to {min(outside)!r}",
                expected="weights in the graph, or in a file beside it",
                mend="copy the file of weights into the folder of the graph",
            )
        model = ir.load(path)
    except UsageError:
        raise
    except Exception as error:  # the parser raises errors of its own kinds
        raise UsageError("The graph cannot be read.", found=f"{path}: {error or type(error).__name__}", expected="an ONNX file") from error
    if not model.graph.outputs:
        raise UsageError("The graph cannot be read.", found=f"{path}: no output", expected="an ONNX file")
    return model


def _inputs(graph: ir.Graph) -> Iterator[GraphValue]:
    """Yield the inputs that have no default: old exporters list all weights as inputs."""
    return (_value(value) for value in graph.inputs if value.name not in graph.initializers)


def _value(value: ir.Value) -> GraphValue:
    sizes = None if value.shape is None else tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return GraphValue(value.name or "", "?" if value.dtype is None else value.dtype.name, sizes)


def _array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    array = tensor.numpy()
    floats = tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    return array.astype(np.float32) if floats else array


def _constant(node: ir.Node) -> NDArray[Any]:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        attribute = node.attributes.get(name)
        if attribute is not None:
            kind = np.float32 if "float" in name else np.int64
            return _array(attribute.as_tensor()) if name == "value" else np.array(attribute.value, dtype=kind)
    raise UsageError(
        "A constant of the graph is not supported.", found=f"{node.name}: {', '.join(node.attributes)}", expected="a dense tensor"
    )


def plain_node(node: ir.Node, versions: Mapping[str, int]) -> OnnxNode:
    """Return a node as plain data.

    Args:
        node: the node.
        versions: versions of the operators by domain.
    """
    domain = "" if node.domain in STANDARD else node.domain
    return OnnxNode(
        name=node.name or "",
        op=node.op_type,
        domain=domain,
        version=versions.get(node.domain, versions.get("", 1)),
        inputs=tuple("" if value is None else value.name or "" for value in node.inputs),
        outputs=tuple(value.name or "" for value in node.outputs),
        attributes={name: _attribute(attribute) for name, attribute in node.attributes.items()},
    )


def _attribute(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return _array(attribute.as_tensor())
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None  # only control flow has graphs within it, and that is refused by name
    return list(attribute.value) if isinstance(attribute.value, list | tuple) else attribute.value
