"""Layers that read a prompt: what an outlier in its first token does to them in integers, and that float inputs change nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.placement import PLACEMENTS, Placement
from calib.quantizers.rules.precision import Precision
from engines.networks.conditioning import Conditioning
from engines.samplers import NoiseSchedule
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.graph.reading.graph_layers import find_layers, layers_beside_the_state, weighted_nodes
from ptqd_export.graph.trace import lower, trace
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.conditions import EMBEDDINGS
from ptqd_export.models.diffusers_models.diffusers_unet import DiffusersAdapter
from tests.ptqd_export.graph.passes.quantized_networks import Run

STATES, TOKENS, DIM = 32, 5, 12
OUTLIER = 100.0
"""Size of one channel of the first token, beside others of about 1."""


@dataclass(frozen=True)
class Prompted:
    """A network with cross attention, and states with prompts whose first token has an outlier.

    Attributes:
        model: the network.
        traced: its graph as traced.
        placement: placement that the graph is lowered for.
    """

    model: LoadedModel
    traced: ir.Model
    placement: Placement

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randn(STATES, TOKENS, DIM, generator=generator)
        prompts[:, 0, 0] = OUTLIER
        return torch.randn(STATES, 2, 8, 8, generator=generator), torch.linspace(900, 100, STATES), prompts

    @cached_property
    def graph(self) -> ir.Model:
        graph = self.traced.clone()
        lower(graph, self.placement)
        return graph

    @property
    def network(self) -> nn.Module:
        return self.model.adapter.network

    def quantized(self, precision: str, placement: Placement) -> list[QuantizedLayer]:
        layers = find_layers(self.graph.graph, dict.fromkeys(weighted_nodes(self.graph.graph), 1))
        inputs, outputs = sorted({layer.source for layer in layers}), [layer.name for layer in layers]
        with observe_activations(self.network, inputs, outputs, 1) as seen, torch.no_grad():
            self.model.adapter(*self.inputs)
        return Quantizer(self.network, layers, seen, placement, QuantizationSettings()).quantize(Precision.parse(precision))

    def snr(self, layers: list[QuantizedLayer]) -> float:
        """SNR of the output in dB."""
        with torch.no_grad():
            exact = self.model.adapter(*self.inputs)
            out = self.model.with_network(fake_quantized(self.network, layers)).adapter(*self.inputs)
        return float(10 * torch.log10(exact.square().sum() / (out - exact).square().sum()))

    def inserted(self, layers: list[QuantizedLayer], placement: Placement) -> ir.Model:
        graph = self.graph.clone()
        InsertQuantization(layers, placement)(graph)
        common.RemoveUnusedNodesPass()(graph)
        return graph


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """A network whose prompt counts, and whose keys and values are of the usual size for the outlier too, as in a trained one."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=8, cross_attention_dim=DIM,
    )  # fmt: skip
    for name, weight in network.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.data[:, 0] /= OUTLIER
        if name.endswith("attn2.to_out.0.weight"):
            weight.data *= 4
    prompts = Conditioning({EMBEDDINGS: np.zeros((1, TOKENS, DIM), np.float32)}, None)
    return LoadedModel("U-Net", DiffusersAdapter(network, (EMBEDDINGS,)), (2, 8, 8), prompts, None, NoiseSchedule())


@pytest.fixture(scope="module")
def traced(model: LoadedModel) -> ir.Model:
    return trace(model)


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def prompted(request: pytest.FixtureRequest, model: LoadedModel, traced: ir.Model) -> Prompted:
    return Prompted(model, traced, PLACEMENTS[request.param])


def _both(prompted: Prompted, precision: str) -> tuple[list[QuantizedLayer], list[QuantizedLayer]]:
    """Layers with the inputs of keys and values in integers, and in float as placed."""
    return prompted.quantized(precision, replace(prompted.placement, condition="quantized")), prompted.quantized(
        precision, prompted.placement
    )


def test_outlier_of_the_first_token_drowns_the_others_in_integers(prompted: Prompted) -> None:
    """The range of the outlier has steps of 0.4, or 0.7 with a sign, for tokens of size 1. Keys and values then give more noise than all
    other layers together.
    """
    integers, floats = _both(prompted, "w8a8")
    prompts, others = ([layer for layer in integers if (layer.layer.role == "condition") is of_prompt] for of_prompt in (True, False))
    assert all(layer.input is not None and layer.input.scale > 0.3 for layer in prompts)
    assert prompted.snr(prompts) < prompted.snr(others) - 3
    assert prompted.snr(floats) > prompted.snr(integers) + 4


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_keys_and_values_alone_differ(prompted: Prompted, precision: str) -> None:
    integers, floats = _both(prompted, precision)
    named = layers_beside_the_state(prompted.graph.graph)
    crossed = {layer.layer.name for layer in floats if layer.layer.role == "condition"}
    assert crossed == {name for name in named if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(crossed) >= 6
    for before, after in zip(integers, floats, strict=True):
        assert torch.equal(before.integers, after.integers)
        if after.layer.name in crossed:
            assert before.input is not None
            assert (after.input, after.output) == (None, None)
            assert after.rule.weight_bits == before.rule.weight_bits
            assert "prompt" in str(after.rule.reason)
        else:
            assert (before.rule, before.input, before.output) == (after.rule, after.input, after.output)


def test_graph_lacks_the_pair_of_the_prompt_and_computes_what_the_oracle_does(prompted: Prompted, run_graph: Run) -> None:
    integers, floats = _both(prompted, "w8a8")
    before = prompted.inserted(integers, replace(prompted.placement, condition="quantized"))
    after = prompted.inserted(floats, prompted.placement)
    assert _pairs(before) - _pairs(after) == 1, "all keys and values read one tensor"
    assert _readers(after, EMBEDDINGS) == _readers(prompted.graph, EMBEDDINGS)
    sample, timestep, prompts = prompted.inputs
    feeds = {"sample": sample.numpy(), "timestep": timestep.numpy(), EMBEDDINGS: prompts.numpy()}
    with torch.no_grad():
        expected = prompted.model.with_network(fake_quantized(prompted.network, floats)).adapter(*prompted.inputs).numpy()
    error = np.square(run_graph(after, feeds) - expected).sum() / np.square(expected).sum()
    assert -10 * np.log10(error) > prompted.snr(floats) + 3


def _pairs(graph: ir.Model) -> int:
    return sum(node.op_type == "QuantizeLinear" for node in graph.graph)


def _readers(graph: ir.Model, name: str) -> list[str]:
    """Operators that read an input of the network."""
    (value,) = (value for value in graph.graph.inputs if value.name == name)
    return [use.node.op_type for use in value.uses()]
