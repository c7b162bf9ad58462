"""Graphs as exporters write them, of several versions, against the PyTorch networks that they were made from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from ptqd_export.models.onnx_graph.onnx_model import load_onnx
from ptqd_export.plan.graph_section import GraphSection
from tests.ptqd_export.models.onnx_graph.onnx_graphs import exported

BLOCKS = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
SIGMAS = GraphSection.model_validate({"schedule": {"sigma_min": 0.002, "sigma_max": 80.0}})


@pytest.mark.parametrize("opset", [11, 14, 17])
def test_every_version_computes_what_torch_computes(tmp_path: Path, opset: int) -> None:
    path = tmp_path / "g.onnx"
    network = exported(path, opset=opset)
    np.savez(tmp_path / "c.npz", level=np.linspace(0, 1, 3, dtype=np.float32))
    model = load_onnx(path, SIGMAS, tmp_path, None, tmp_path / "c.npz")
    inputs = torch.randn(4, 2, 8, 8), torch.tensor([0.1, 1.0, 3.0, 70.0]), torch.linspace(0, 1, 4)
    with torch.no_grad():
        np.testing.assert_allclose(model.adapter.network(*inputs).numpy(), network(*inputs).numpy(), atol=1e-5)
    layers = {name for name, part in model.adapter.network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    assert layers == {name for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}


def test_a_graph_in_16_bits_is_read_in_float32(tmp_path: Path) -> None:
    """With weights, states and outputs in 16 bits, as converters write it. The comparison allows what 16 bits lose."""
    path = tmp_path / "g.onnx"
    network = exported(path, opset=17)
    graph = onnx.load(path)
    for one in graph.graph.initializer:
        if one.data_type == TensorProto.FLOAT:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name))
    factors = {name for node in graph.graph.node if node.op_type == "Resize" for name in node.input}
    for node in graph.graph.node:
        if factors.intersection(node.output):
            continue
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del graph.graph.value_info[:]
    onnx.save(graph, path)
    np.savez(tmp_path / "c.npz", level=np.linspace(0, 1, 3, dtype=np.float32))
    section = GraphSection.model_validate({"schedule": {"sigma_min": 0.02, "sigma_max": 20.0}})
    model = load_onnx(path, section, tmp_path, None, tmp_path / "c.npz")
    inputs = torch.randn(2, 2, 8, 8), torch.tensor([0.1, 3.0]), torch.tensor([0.0, 1.0])
    with torch.no_grad():
        found = model.adapter.network(*inputs)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), network(*inputs).numpy(), atol=2e-3)


class Called(nn.Module):
    """Calls a U-Net of diffusers by position, as Optimum exports it."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        out: Tensor = self.unet(sample, timestep, condition, return_dict=False)[0]
        return out


def _conditional() -> tuple[Called, Tensor, str]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    unet = UNet2DConditionModel(**BLOCKS, **kinds, cross_attention_dim=12)
    return Called(unet.eval()), torch.randn(1, 5, 12), "encoder_hidden_states"


def _labelled() -> tuple[Called, Tensor, str]:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return Called(UNet2DModel(**BLOCKS, **kinds, in_channels=4, out_channels=4, num_class_embeds=5).eval()), torch.tensor([3]), "y"


@pytest.mark.parametrize(
    ("make", "timestep", "fixed"),
    [(_conditional, torch.tensor(5), False), (_conditional, torch.tensor([5.0]), True), (_labelled, torch.tensor(5), True)],
    ids=["number", "fixed", "labels"],
)
def test_networks_of_diffusers_are_those_of_their_code(tmp_path: Path, make: Any, timestep: Tensor, fixed: bool) -> None:
    """The timestep is one for all samples in the graph, and one for each here; the batch is free in the graph, or 1."""
    network, condition, name = make()
    path, names = tmp_path / "unet.onnx", ["sample", "timestep", name]
    free = {} if fixed else {"dynamic_axes": {"sample": {0: "batch"}, name: {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args: Any = (torch.randn(1, 4, 8, 8), timestep, condition)
        torch.onnx.export(network, args, path, input_names=names, output_names=["out_sample"], opset_version=14, dynamo=False, **free)  # type: ignore[arg-type]  # mypy takes the options for every argument
    np.savez(tmp_path / "c.npz", encoder_hidden_states=np.random.default_rng(0).standard_normal((3, 5, 12)).astype(np.float32))
    labels = {"inputs": {"y": {"labels": 5}}} if name == "y" else {}
    section = GraphSection.model_validate({"schedule": {}, **labels})
    model = load_onnx(path, section, tmp_path, None, None if name == "y" else tmp_path / "c.npz")
    inputs = model.example_inputs(3)
    with torch.no_grad():
        np.testing.assert_allclose(model.adapter(*inputs).numpy(), network(*inputs).numpy(), atol=2e-4)
    assert len([part for part in model.adapter.network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]) == len(
        [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    )
