"""Let the image inputs of a traced network take what `ptqd-run evaluate` feeds: gray or colour pictures in [-1, 1] of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike
from onnx_ir.passes.common import NameFixPass

from engines.apps.evaluate.extractor import NAME

Prepare: TypeAlias = Callable[["PictureNodes"], ir.Value]
"""Returns what the network takes, made with nodes from a picture."""


class PictureNodes:
    """Creates the nodes that prepare one picture input.

    Args:
        picture: the input [batch, 3, height, width], in [-1, 1].
    """

    def __init__(self, picture: ir.Value) -> None:
        self.tape = ir.tape.Tape()
        self.picture = self.op("Mul", picture, np.ones((1, 3, 1, 1), np.float32))

    def op(self, kind: str, *inputs: ir.Value | ArrayLike | None, **attributes: object) -> ir.Value:
        """Append a node and return its output. Inputs that are not values become constants."""
        values = [one if one is None or isinstance(one, ir.Value) else self._constant(one) for one in inputs]
        return self.tape.op(kind, values, attributes=attributes)  # type: ignore[arg-type]  # attributes are numbers, texts and lists

    def levels(self) -> ir.Value:
        """Return the picture's levels, whole numbers from 0 to 255, as an 8-bit file holds them."""
        return self.op("Round", self.op("Mul", self.op("Add", self.picture, np.float32(1)), np.float32(127.5)))

    def resized(self, value: ir.Value, sizes: ir.Value | ArrayLike, axes: Sequence[int], **attributes: object) -> ir.Value:
        """Return a picture whose axes have other sizes; the attributes are those of ONNX's Resize."""
        return self.op("Resize", value, None, None, sizes, axes=list(axes), **attributes)

    def _constant(self, value: ArrayLike) -> ir.Value:
        return self.tape.op("Constant", [], attributes={"value": ir.tensor(np.asarray(value))})


def take_pictures(graph: ir.Model, prepare: Prepare, name: str) -> None:
    """Replace every input by a picture input with free axes and the nodes that prepare the picture, and name the graph.

    Args:
        graph: traced network whose inputs are all images.
        prepare: creates the nodes.
        name: name of the extractor, which `ptqd-run evaluate` puts beside every figure.
    """
    for place, old in enumerate(tuple(graph.graph.inputs)):
        new = ir.val(old.name, ir.DataType.FLOAT, ["batch", "channels", "height", "width"])
        nodes = PictureNodes(new)
        ir.convenience.replace_all_uses_with(old, prepare(nodes))
        graph.graph.inputs[place] = new
        graph.graph.insert_before(graph.graph[0], nodes.tape.nodes)
    graph.metadata_props[NAME] = name
    NameFixPass()(graph)
