"""Free the batch of a graph, where its exporter fixed it, and compare with the graph itself.

A graph may say batch 1 in a Reshape, or take one timestep for all samples. Two runs show which sizes are the batch: one as the graph
states, and one with twice as many rows. Each step whose output does not grow as it should is mended by rule, and the result is proven:
every row of larger batches must equal what ONNX Runtime returns for the row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.backends.onnxruntime.onnxruntime_session import import_onnxruntime
from engines.errors import PtqdError, UsageError, first_line
from ptqd_export.models.onnx_graph.graph_module import GraphModule, GraphStep, Mend
from ptqd_export.models.onnx_graph.operators.elementwise import ELEMENTWISE
from ptqd_export.models.onnx_graph.operators.operator_call import Value
from ptqd_export.models.onnx_graph.reading.onnx_file import GraphValue

PARITY = 1e-4
"""Largest difference from the graph, relative to its largest output."""

HALF_PARITY = 5e-2
"""The same for a graph in 16 bits, whose own output is that far from exact."""

BATCHES = (2, 3)
"""Batches that are compared."""

_MOVES = ("Reshape", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Tile")
"""Operators that leave a single number what it is."""

_DTYPES = {
    "FLOAT16": np.float16, "DOUBLE": np.float64, "FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_,
    "INT8": np.int8, "INT16": np.int16, "UINT8": np.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class OwnGraph:
    """A graph on ONNX Runtime as it is.

    Attributes:
        session: the runtime's session.
        inputs: inputs of the graph, in the order in which the module takes them.
        batched: for each of them, whether it has a row for each sample; the others are the same for all.
        output: name of the output.
    """

    session: Any
    inputs: tuple[GraphValue, ...]
    batched: tuple[bool, ...]
    output: str

    @classmethod
    def open(cls, path: Path, inputs: Sequence[GraphValue], batched: Sequence[bool], output: str) -> OwnGraph:
        """Open a graph; for the arguments, see the attributes.

        Raises:
            UsageError: the runtime refuses it.
        """
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no base class
            raise UsageError(
                "ONNX Runtime refuses the graph.", found=f"{path}: {first_line(error)}", expected="a graph that runs"
            ) from error
        return cls(session, tuple(inputs), tuple(batched), output)

    @property
    def rows(self) -> int:
        """Batch that the graph fixes; 1 if it is free."""
        sizes = [one.shape[0] for one, is_row in zip(self.inputs, self.batched, strict=True) if one.shape and is_row]
        return max((size for size in sizes if isinstance(size, int)), default=1)

    def some(self, values: Sequence[Tensor], rows: slice) -> list[Tensor]:
        """Return some rows of the inputs."""
        return [value[rows] if is_row else value for value, is_row in zip(values, self.batched, strict=True)]

    def of_row(self, values: Sequence[Tensor], row: int) -> list[Tensor]:
        """Return one row of the inputs in the shapes that the graph takes."""
        chosen = zip(self.inputs, self.some(values, slice(row, row + 1)), self.batched, strict=True)
        return [_own_shape(one, value) if is_row else value for one, value, is_row in chosen]

    def row(self, values: Sequence[Tensor], row: int) -> NDArray[Any]:
        """Return the graph's output [1, ...] for one row of the inputs."""
        feeds: dict[str, NDArray[Any]] = {
            one.name: value.numpy().astype(_DTYPES.get(one.dtype, np.float32))
            for one, value in zip(self.inputs, self.of_row(values, row), strict=True)
        }
        try:
            (out,) = self.session.run([self.output], feeds)
        except Exception as error:
            raise UsageError(
                "ONNX Runtime does not run the graph.", found=first_line(error), expected="a graph that takes its own inputs"
            ) from error
        found: NDArray[Any] = out[:1].astype(np.float32)
        return found


def _own_shape(one: GraphValue, value: Tensor) -> Tensor:
    """Return a row [1, ...] in the shape that an input has in the graph: a single number, or as often as the graph has rows."""
    if one.shape == ():
        return value.reshape(())
    fixed = one.shape[0] if one.shape else 1
    return value.expand(fixed, *value.shape[1:]) if isinstance(fixed, int) else value


def free_rows(module: GraphModule, own: OwnGraph, inputs: Sequence[Tensor]) -> None:
    """Mend the module so that it takes any batch.

    Args:
        module: the graph.
        own: the same graph on the runtime.
        inputs: example inputs, [2, ...] each, but for those that are the same for all rows.

    Raises:
        UsageError: a step would need more than these rules.
    """
    rows, one = own.rows, own.of_row(inputs, 0)
    two = [value.repeat_interleave(rows, 0) if is_row else value for value, is_row in zip(inputs, own.batched, strict=True)]
    shapes = {graph.name: tuple(value.shape) for graph, value in zip(own.inputs, one, strict=True)}
    taken = list[GraphStep]()

    def note(step: GraphStep, outputs: Sequence[Value]) -> None:
        taken.append(step)
        shapes.update((name, tuple(value.shape)) for name, value in zip(step.outputs, outputs, strict=False))

    lone = {graph.name for graph, is_row in zip(own.inputs, own.batched, strict=True) if is_row and graph.shape in ((), (1,))}
    with torch.no_grad():
        try:
            module.run(one, after=note)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise PtqdError(
                "The graph cannot be run with torch.",
                found=f"{module.steps[len(taken)].node}: {first_line(error)}",
                expected="a graph that runs with inputs of the shapes that it states",
                mend="if ONNX Runtime runs it, report this graph",
            ) from error
        shapes |= dict.fromkeys(lone, ())
        menders = _Menders(module, shapes, lone, 2 * rows, rows)
        try:
            module.run(two, watch=menders.mend)
        except Exception as error:
            raise UsageError(
                "The graph fixes the batch, and this cannot be undone.",
                found=f"{menders.at}: {first_line(error)}",
                expected=f"a graph that takes {2 * rows} rows as well as {rows}",
                mend="export the network again with a dynamic batch axis",
            ) from error


class _Menders:
    """Watches the second run, and mends steps before they are taken.

    Args:
        module: gets the mends.
        shapes: shapes of all values in the first run, by name.
        lone: names of inputs that were single numbers in the first run, and are one number for each row now.
        rows: rows in the second run.
        own: rows in the first.
    """

    def __init__(self, module: GraphModule, shapes: dict[str, tuple[Any, ...]], lone: set[str], rows: int, own: int) -> None:
        self._module, self._shapes, self._lone, self._rows, self._own = module, shapes, lone, rows, own
        self.at = ""

    def mend(self, number: int, taken: Sequence[Value | None]) -> None:
        """Decide on a step, given its inputs in the second run."""
        step = self._module.steps[number]
        self.at = str(step.node)
        if self._lone.intersection(step.inputs):
            self._mend_lone(number, taken)
        elif step.node.op == "Reshape" and isinstance(taken[0], Tensor):
            self._mend_reshape(number, taken[0], taken[1] if len(taken) > 1 else None)
        elif step.node.op == "Concat" and all(isinstance(value, Tensor) for value in taken):
            self._mend_concat(number, [value for value in taken if isinstance(value, Tensor)])

    def _mend_reshape(self, number: int, x: Tensor, target: Value | None) -> None:
        """Let the axis grow where the rows are in memory: behind as many values as before."""
        step = self._module.steps[number]
        before = self._shapes.get(step.inputs[0])
        if before is None or len(before) != x.ndim:
            return
        grown = next((axis for axis, (old, new) in enumerate(zip(before, x.shape, strict=True)) if new != old), None)
        if grown is None:
            return
        after = list(self._shapes[step.outputs[0]])
        stride = math.prod(before[:grown])
        place = next((axis for axis in range(len(after)) if math.prod(after[:axis]) == stride), None)
        if place is None:
            return
        wanted = [*after[:place], after[place] * self._rows // self._own, *after[place + 1 :]]
        if _target_sizes(step.node.attributes.get("shape", []) if target is None else target, x) == wanted:
            return
        self._module.mends[number] = Mend(shape=(*after[:place], -1, *after[place + 1 :]))

    def _mend_concat(self, number: int, taken: list[Tensor]) -> None:
        axis = self._module.steps[number].node.attributes.get("axis", 1)
        sizes = {value.shape[0] for value in taken if value.ndim}
        if axis % taken[0].ndim != 0 and sizes == {1, self._rows} and self._own == 1:
            self._module.mends[number] = Mend(repeats=True)

    def _mend_lone(self, number: int, taken: Sequence[Value | None]) -> None:
        """Mend a step with an input that has the rows in front of what were all its axes; a list of one number had none."""
        step = self._module.steps[number]
        out, first = step.outputs[0], step.inputs[0]
        after = self._shapes[out]
        single = len(after) <= 1 and math.prod(after) == 1
        if step.node.op in _MOVES and isinstance(taken[0], Tensor) and first in self._lone:
            if math.prod(after) == math.prod(self._shapes[first]):
                joins = not single and bool(after) and after[0] == 1
                self._module.mends[number] = Mend(shape=(-1, *(() if single else after[1:] if joins else after)))
                self._stays_lone(out, single=single, stays=not joins)
        elif step.node.op == "Concat" and all(name in self._lone for name in step.inputs):
            self._module.mends[number] = Mend(axis=1)
            self._stays_lone(out, single=False, stays=True)
        elif step.node.op in ELEMENTWISE and single:
            self._stays_lone(out, single=True, stays=True)
        elif step.node.op in ELEMENTWISE:
            ranks = {index: len(self._shapes[name]) for index, name in enumerate(step.inputs) if name in self._lone}
            joins = after[0] in (1, self._own) and all(rank < len(after) for rank in ranks.values())
            width = len(after) - 1 if joins else len(after)
            inputs = {
                index: (-1, *[1] * (width - rank), *self._shapes[step.inputs[index]]) for index, rank in ranks.items() if width != rank
            }
            if inputs:
                self._module.mends[number] = Mend(inputs=inputs)
            self._stays_lone(out, single=False, stays=not joins)

    def _stays_lone(self, name: str, *, single: bool, stays: bool) -> None:
        if stays:
            self._lone.add(name)
        if single:
            self._shapes[name] = ()


def _target_sizes(target: Value | Sequence[int], x: Tensor) -> list[int] | None:
    """Return the sizes that a Reshape to a target gives a tensor; None if it does not fit."""
    sizes = [x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(np.asarray(target).reshape(-1))]
    known = math.prod(size for size in sizes if size != -1)
    return [x.numel() // known if size == -1 else size for size in sizes] if known else None


def check_rows(module: GraphModule, own: OwnGraph, inputs: Sequence[Tensor], *, half: bool) -> float:
    """Return the largest difference of the module from the graph, relative to the largest output, over the rows of all `BATCHES`.

    Args:
        module: the graph, mended.
        own: the graph as it is.
        inputs: example inputs, [3, ...] each, but for those that are the same for all rows.
        half: whether the graph computes in 16 bits.

    Raises:
        PtqdError: they differ by more than rounding.
    """
    expected, worst = np.concatenate([own.row(inputs, row) for row in range(max(BATCHES))]), 0.0
    most = HALF_PARITY if half else PARITY
    for batch in BATCHES:
        taken = own.some(inputs, slice(batch))
        try:
            with torch.no_grad():
                found = module(*taken).numpy()
            difference = float(np.abs(found - expected[:batch]).max() / np.abs(expected).max())
        except (RuntimeError, ValueError) as error:
            raise _differs(f"batch {batch}: {first_line(error)}", most) from error
        if not difference <= most:
            raise _differs(f"batch {batch}: a relative difference of {difference:.1e}", most)
        worst = max(worst, difference)
    return worst


def _differs(found: str, most: float) -> PtqdError:
    return PtqdError(
        "In a batch, the graph does not compute what it computes for one sample.",
        found=found,
        expected=f"at most {most:.0e}",
        mend="export the network again with a dynamic batch axis; if it has one, report this graph",
    )
