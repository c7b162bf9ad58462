"""Faults to plant in the graph of a diffusers U-Net at W8A8, each in one layer, and the layer that a check must blame.

A small model and one of full size take the same faults: the names of its layers differ by a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.layer_outputs import quantized_layer_name

Array = NDArray[Any]


@dataclass(frozen=True)
class Fault:
    """A change of a graph, given the prefix of its layers' names."""

    layer: str
    plant: Callable[[ir.Graph, str], None]


def planted(fault: Fault, source: Path, folder: Path, prefix: str = "") -> Path:
    """Save a copy of a graph with a fault, under the same name in another folder."""
    model = ir.load(source)
    fault.plant(model.graph, prefix)
    save_graph(model, folder / source.name)
    return folder / source.name


def more_noise(out: Array, noise_db: float, share: float = 0.1) -> Array:
    """Add independent noise to outputs: a share of the noise power that they have, which is `noise_db` below the outputs'."""
    deviation = np.sqrt(share) * out.std() * 10 ** (-noise_db / 20)
    return out + np.random.default_rng(0).normal(0, deviation, out.shape).astype(np.float32)


def _changed(name: str, change: Callable[[Array], Array]) -> Callable[[ir.Graph, str], None]:
    """Change one initializer."""

    def plant(graph: ir.Graph, prefix: str) -> None:
        value = graph.initializers[prefix + name]
        assert value.const_value is not None
        before = value.const_value.numpy()
        after = np.asarray(change(before), before.dtype)
        assert (after != before).any()
        value.const_value = ir.tensor(after, name=value.name)

    return plant


def _permuted(weight: Array) -> Array:
    """The weights of one output channel in another order."""
    changed = weight.copy()
    changed[3] = np.roll(changed[3], 1, axis=0)
    return changed


def _wrong_zero_point(layer: str) -> Callable[[ir.Graph, str], None]:
    """Raise the zero point with which a layer's input is dequantized by one."""

    def plant(graph: ir.Graph, prefix: str) -> None:
        (node,) = (node for node in graph if quantized_layer_name(node) == prefix + layer)
        assert node.inputs[0] is not None
        dequantize = node.inputs[0].producer()
        assert dequantize is not None
        assert dequantize.op_type == "DequantizeLinear"
        zero_point = dequantize.inputs[2]
        assert zero_point is not None
        assert zero_point.const_value is not None
        right = zero_point.const_value.numpy()
        wrong = ir.Value(name="wrong", const_value=ir.tensor(right + right.dtype.type(1), name="wrong"))
        graph.register_initializer(wrong)
        dequantize.replace_input_with(2, wrong)

    return plant


MIDDLE, EARLY, LAST = "mid_block.resnets.0.conv1", "down_blocks.0.resnets.0.conv2", "conv_out"

FAULTS: Mapping[str, Fault] = {
    "scale 5 % off": Fault(MIDDLE, _changed(f"{MIDDLE}.weight.scale", lambda scale: 1.05 * scale)),
    "a channel's weights permuted": Fault(MIDDLE, _changed(f"{MIDDLE}.weight.int", _permuted)),
    "a missing bias": Fault(EARLY, _changed(f"{EARLY}.bias.int", np.zeros_like)),
    "a wrong zero point": Fault(MIDDLE, _wrong_zero_point(MIDDLE)),
    "a gain applied twice": Fault(MIDDLE, _changed("mid_block.resnets.0.norm1.weight", lambda gain: 1.05 * gain)),
    "a wrong bias of a layer in float": Fault(LAST, _changed(f"{LAST}.bias", lambda bias: bias + 0.1)),
}
