"""The noise of every layer from one backward pass, against networks with a single quantized layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.layer_noise import layer_noise, within_share
from calib.quantizers.low_rank_branch import low_rank_branch
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.preparation.rotation import rotate_inputs
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from calib.quantizers.scale_search import weight_scale

COARSE = ActivationQuantizer(5, signed=True, scale=0.25, zero_point=0)
NAMES = ("first", "second", "unused")


class Network(nn.Module):
    """`first` is followed by an operation in place, `second` runs twice, and the output does not depend on `unused`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu_()
        hidden = hidden + 0.5 * self.second(hidden)
        self.unused(hidden)
        out: Tensor = self.second(hidden)
        return out


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


def _layer(network: Network, name: str) -> QuantizedLayer:
    weight = network.get_submodule(name).get_parameter("weight")
    quantizer = weight_scale(weight, 4)
    layer = Layer(name, "MatMul", "inner", (16, 16), 256, name)
    return QuantizedLayer(layer, Rule(4, 4, None, "float"), quantizer.integers(weight), quantizer, COARSE, None, None)


def _branched(network: Network, layer: QuantizedLayer) -> QuantizedLayer:
    branch = low_rank_branch(network.get_parameter(f"{layer.layer.name}.weight"), 2, torch.eye(16)[:, None])
    rest = branch.rest_of(network.get_parameter(f"{layer.layer.name}.weight"))
    quantizer = weight_scale(rest, 4)
    return replace(layer, branch=branch, weight=quantizer, integers=quantizer.integers(rest))


def _errors(out: Tensor, exact: Tensor) -> Tensor:
    """Squared error of each of the 100 batches."""
    return (out - exact).square().reshape(100, -1).sum(1)


@pytest.mark.parametrize("prepared", ["as it is", "rotated", "branched"])
def test_noise_is_that_of_the_network_with_the_layer_alone_quantized(network: Network, prepared: str) -> None:
    if prepared == "rotated":
        rotate_inputs(network, {"first": 16, "second": 16})
    inputs = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    layers = [_layer(network, name) for name in NAMES]
    if prepared == "branched":
        layers = [_branched(network, layer) for layer in layers]
    found = layer_noise(network, lambda network, batch: network(*batch), layers, ((row,) for row in inputs.split(4)))
    exact = network(inputs)
    total = _errors(fake_quantized(network, layers)(inputs), exact)
    power = exact.square().reshape(100, -1).sum(1)
    for layer in layers:
        error = _errors(fake_quantized(network, [layer])(inputs), exact)
        expected = float((error / total).mean() * (total / power).mean())
        assert found[layer.layer.name] == pytest.approx(expected, rel=0.3)
    assert found["unused"] == 0
    assert found["first"] > 0.003
    assert not network._forward_hooks
    assert not any(module._forward_hooks for module in network.modules())


def test_the_share_goes_to_the_layers_that_are_noisiest_for_their_cost() -> None:
    noise = {"small": 0.2, "large": 0.3, "cheap": 0.000001, "quiet": 0.002}
    cost = {"small": 10.0, "large": 60.0, "cheap": 0.0, "quiet": 30.0}
    assert within_share(noise, cost, 0.0) == []
    assert within_share(noise, cost, 0.1) == ["small"]
    assert within_share(noise, cost, 0.6) == ["small"], "what is left over after the best does not reach for the second, nor is it wasted"
    assert within_share(noise, cost, 0.7) == ["large", "small"]
    assert within_share(noise, cost, 1.0) == ["large", "small", "quiet", "cheap"]
