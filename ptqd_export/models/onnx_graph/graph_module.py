"""A torch module that computes what an ONNX graph computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ptqd_export.models.onnx_graph.layer_modules import find_graph_layers
from ptqd_export.models.onnx_graph.module_names import ModuleTree
from ptqd_export.models.onnx_graph.operators.operator_call import OnnxNode, OperatorCall, Value, as_tensor, host_array
from ptqd_export.models.onnx_graph.operators.operator_table import HOST_INPUTS, OPERATORS, Operators
from ptqd_export.models.onnx_graph.operators.products import begin_and_end, padded


@dataclass(frozen=True)
class GraphStep:
    """One step of a run: a node, or a layer in place of nodes.

    Attributes:
        node: the node, or the first one that the layer replaces.
        layer: place of the layer in the module; None for a node without one.
        outputs: names of what the step makes.
        pads: whether the input of the layer is padded before.
        done: names of what no later step reads.
    """

    node: OnnxNode
    layer: str | None
    outputs: tuple[str, ...]
    pads: bool = False
    done: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.node.inputs if self.layer is None else self.node.inputs[:1]


@dataclass(frozen=True)
class Mend:
    """What a step does otherwise than its node says, so that the batch is free.

    Attributes:
        inputs: shapes that inputs get before the node runs, by position.
        shape: shape that the first input gets instead of running the node.
        axis: how much further back the node's axis lies.
        repeats: whether inputs of one row are repeated for every row of the others.
    """

    inputs: Mapping[int, tuple[int, ...]] | None = None
    shape: tuple[int, ...] | None = None
    axis: int = 0
    repeats: bool = False


Watch: TypeAlias = Callable[[int, Sequence[Value | None]], None]
"""Told the number of every step and its inputs before the step is taken."""

After: TypeAlias = Callable[[GraphStep, Sequence[Value]], None]
"""Told every step and its outputs after it is taken."""


class GraphModule(nn.Module):
    """Runs the nodes of a graph one after the other.

    Layers with weights are submodules, and constants are parameters, named as in the graph.

    Args:
        nodes: nodes in an order in which they can run.
        constants: constants that they read.
        inputs: names of the inputs, in the order of `forward`.
        output: name of what `forward` returns.
        operators: functions of the operators.
    """

    def __init__(
        self,
        nodes: Sequence[OnnxNode],
        constants: Mapping[str, Value],
        inputs: Sequence[str],
        output: str,
        operators: Operators = OPERATORS,
    ) -> None:
        super().__init__()
        self._operators = operators
        self.input_names, self.output_name = tuple(inputs), output
        tree, self.host, self.places = ModuleTree(self), dict[str, Value](), dict[str, str]()
        steps = _steps(nodes, constants, output, tree)
        read = {name for step in steps for name in step.inputs} | {output}
        numbers = {step.inputs[at] for step in steps for at in HOST_INPUTS.get(step.node.op, ()) if at < len(step.inputs)}
        for name in sorted(read & constants.keys()):
            value = constants[name]
            if name in numbers and isinstance(value, Tensor):
                self.host[name] = host_array(value.reshape(-1).tolist(), value.shape)
            elif isinstance(value, Tensor):
                self.places[name] = tree.add_constant(name, nn.Parameter(value, requires_grad=False))
            else:
                self.host[name] = value
        self.steps = _with_ends(steps, output)
        self.mends: dict[int, Mend] = {}

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(inputs)

    def run(self, inputs: Sequence[Tensor], watch: Watch | None = None, after: After | None = None) -> Tensor:
        """Return the output for the inputs, which are float tensors of one type, or whole numbers.

        Args:
            inputs: in the order of `input_names`.
            watch: told the inputs of every step before it is taken.
            after: told the outputs of every step.
        """
        values: dict[str, Value] = dict(self.host)
        values |= {name: self.get_parameter(place) for name, place in self.places.items()}
        values |= dict(zip(self.input_names, inputs, strict=True))
        dtype = next((one.dtype for one in inputs if one.is_floating_point()), torch.float32)
        device = inputs[0].device
        for number, step in enumerate(self.steps):
            taken = [values[name] if name else None for name in step.inputs]
            if watch is not None:
                watch(number, taken)
            outputs = self._take(step, taken, self.mends.get(number), dtype, device)
            values |= dict(zip(step.outputs, outputs, strict=False))
            if after is not None:
                after(step, outputs)
            for name in step.done:
                del values[name]
        return as_tensor(values[self.output_name], dtype, device)

    def _take(
        self, step: GraphStep, taken: list[Value | None], mend: Mend | None, dtype: torch.dtype, device: torch.device
    ) -> tuple[Value, ...]:
        node = step.node
        if mend is not None:
            taken = _mended(mend, taken)
            if mend.shape is not None:
                return (cast(Tensor, taken[0]).reshape(mend.shape),)
            if mend.axis:
                node = _with_axis(node, mend.axis)
        call = OperatorCall(node, taken, dtype, device)
        if step.layer is not None:
            return (self._layer(step, call),)
        found = self._operators[node.domain, node.op](call)
        return found if isinstance(found, tuple) else (found,)

    def _layer(self, step: GraphStep, call: OperatorCall) -> Tensor:
        layer: Any = self.get_submodule(str(step.layer))
        x = call.tensor(0)
        if step.pads:
            x, left = padded(x, *begin_and_end(call, layer.kernel_size, x.shape[2:]))
            if any(left):
                x = functional.pad(x, _both_ends(left))
        out: Tensor = layer(x)
        return out


def _both_ends(padding: Sequence[int]) -> list[int]:
    return [size for one in reversed(padding) for size in (one, one)]


def _mended(mend: Mend, taken: list[Value | None]) -> list[Value | None]:
    for index, shape in (mend.inputs or {}).items():
        taken[index] = cast(Tensor, taken[index]).reshape(shape)
    if mend.repeats:
        rows = next((value.shape[0] for value in taken if isinstance(value, Tensor) and not _is_one(value.shape[0])), 1)
        taken = [
            value.expand(rows, *value.shape[1:]) if isinstance(value, Tensor) and _is_one(value.shape[0]) else value for value in taken
        ]
    return taken


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _with_axis(node: OnnxNode, behind: int) -> OnnxNode:
    axis = node.attributes.get("axis", 0)
    moved = axis + behind if axis >= 0 else axis
    return OnnxNode(node.name, node.op, node.domain, node.version, node.inputs, node.outputs, {**node.attributes, "axis": moved})


def _steps(nodes: Sequence[OnnxNode], constants: Mapping[str, Value], output: str, tree: ModuleTree) -> list[GraphStep]:
    layers = find_graph_layers(nodes, constants, output)
    first = {id(layer.nodes[0]): layer for layer in layers}
    later = {id(node) for layer in layers for node in layer.nodes[1:]}
    steps = []
    for node in nodes:
        layer = first.get(id(node))
        if layer is not None:
            steps.append(GraphStep(node, tree.add_layer(layer.name, layer.module), (layer.output,), layer.pads))
        elif id(node) not in later:
            steps.append(GraphStep(node, None, node.outputs))
    return steps


def _with_ends(steps: Sequence[GraphStep], output: str) -> tuple[GraphStep, ...]:
    """Return the steps with what each is the last to read, so that a run holds no more than it needs."""
    read, ended = {output}, list[GraphStep]()
    for step in reversed(steps):
        names = dict.fromkeys(name for name in (*step.inputs, *step.outputs) if name and name not in read)
        read.update(names)
        ended.append(GraphStep(step.node, step.layer, step.outputs, step.pads, tuple(names)))
    return tuple(reversed(ended))
