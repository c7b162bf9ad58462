"""Small graphs: written by hand, and exported from a small U-Net."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

Interface: TypeAlias = tuple[str, Sequence[int | str]]
"""Type and shape of an input."""


class SmallUNet(nn.Module):
    """A U-Net [batch, 2, 8, 8] with group norms, attention, a layer norm, a skip connection, and a condition [batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 16, 3, padding=1)
        self.time = nn.Linear(8, 16)
        self.level = nn.Linear(1, 16)
        self.norm1, self.down = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.ln, self.q, self.k, self.v, self.o = nn.LayerNorm(16), *(nn.Linear(16, 16) for _ in range(4))
        self.norm2, self.up, self.conv_out = nn.GroupNorm(8, 16), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 2, 3, padding=1)

    def forward(self, noisy: Tensor, sigma: Tensor, level: Tensor) -> Tensor:
        angle = (sigma.log() / 4)[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        vector = self.time(torch.cat([angle.sin(), angle.cos()], -1)) + self.level(level[:, None])
        skip = self.conv_in(noisy / torch.sqrt(sigma**2 + 0.25)[:, None, None, None])
        h = self.down(functional.silu(self.norm1(skip) + vector[:, :, None, None]))
        batch, channels, height, width = h.shape
        tokens = h.reshape(batch, channels, height * width).transpose(1, 2)
        q, k, v = (one(self.ln(tokens)).reshape(batch, -1, 4, 4).transpose(1, 2) for one in (self.q, self.k, self.v))
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).reshape(batch, -1, channels)
        h = (tokens + self.o(mixed)).transpose(1, 2).reshape(batch, channels, height, width)
        h = functional.interpolate(self.up(functional.gelu(self.norm2(h))), scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv_out(torch.cat([h, skip], 1))
        return out


def exported(path: Path, *, opset: int, dynamo: bool = False, fixed: bool = False) -> SmallUNet:
    """Export a small U-Net as exporters do; return it."""
    torch.manual_seed(0)
    network = SmallUNet().eval()
    inputs = (torch.randn(2, 2, 8, 8), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    names, free = ("noisy", "sigma", "level"), dict[str, Any]()
    if fixed:
        inputs = tuple(value[:1] for value in inputs)  # type: ignore[assignment]
    elif dynamo:
        free = {"dynamic_shapes": tuple({0: torch.export.Dim("batch")} for _ in names)}
    else:
        free = {"dynamic_axes": {name: {0: "batch"} for name in names}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, inputs, path, input_names=list(names), output_names=["denoised"], opset_version=opset, dynamo=dynamo,
            external_data=False, verbose=False, **free,
        )  # fmt: skip
    return network


def node(op: str, inputs: str | Sequence[str], outputs: str | Sequence[str], domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Return a node; a text is the name of one input or output."""
    taken, made = ([one] if isinstance(one, str) else list(one) for one in (inputs, outputs))
    return helper.make_node(op, taken, made, domain=domain, **attributes)


def graph_file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Interface],
    constants: Mapping[str, Any] | None = None,
    *,
    output: tuple[str, Sequence[int | str]] = ("out", ()),
    opset: int = 18,
    as_inputs: Sequence[str] = (),
) -> Path:
    """Write a graph.

    Args:
        path: file to write.
        nodes: its nodes; they make `output`.
        inputs: type and shape of the inputs by name.
        constants: initializers by name.
        output: name and shape of the output.
        opset: version of the standard operators.
        as_inputs: names of initializers that are listed as inputs too.
    """
    values = {name: numpy_helper.from_array(value, name) for name, value in (constants or {}).items()}
    listed = [helper.make_tensor_value_info(name, getattr(TensorProto, kind), list(shape)) for name, (kind, shape) in inputs.items()]
    listed += [helper.make_tensor_value_info(name, values[name].data_type, values[name].dims) for name in as_inputs]
    out = helper.make_tensor_value_info(output[0], TensorProto.FLOAT, list(output[1]) or None)
    graph = helper.make_graph(list(nodes), "graph", listed, [out], list(values.values()))
    domains = {one.domain for one in nodes if one.domain}
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in sorted(domains))]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), path)
    return path


def random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
