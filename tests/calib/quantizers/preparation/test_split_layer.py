"""A split layer computes what the layer computed, and its parts are layers of their own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.oracle import fake_quantized
from calib.quantizers.preparation.split_layer import SplitLayer, part_name, split_layers
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.layers import Layer, Op
from calib.quantizers.rules.placement import PLACEMENTS
from calib.quantizers.rules.precision import Precision

CASES = [
    (nn.Conv2d(7, 4, 3, padding=1, stride=2), (2, 7, 6, 6), (3, 4)),
    (nn.Conv2d(7, 4, 1, bias=False), (2, 7, 5, 5), (5, 1, 1)),
    (nn.Conv1d(6, 4, 3), (2, 6, 9), (2, 4)),
    (nn.Linear(6, 5), (2, 3, 6), (4, 2)),
    (nn.Linear(6, 5, bias=False), (2, 6), (1, 5)),
]


@pytest.mark.parametrize(("layer", "shape", "sizes"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_sum_of_the_parts_is_the_layer(layer: nn.Module, shape: Sequence[int], sizes: Sequence[int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SplitLayer(layer, sizes)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_bias_stays_with_the_first_part_and_weights_are_copies() -> None:
    layer = nn.Linear(6, 5)
    first, second = SplitLayer(layer, (2, 4)).parts
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert torch.equal(first.bias, layer.bias)
    assert second.bias is None
    assert (first.in_features, second.in_features) == (2, 4)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        first.weight.zero_()
    assert torch.equal(layer.weight, before)


class Skip(nn.Module):
    """`merge` reads a concatenation whose second part has twenty times the range, and weights to match, as trained networks have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Module()
        merge = nn.Conv2d(16, 8, 3, padding=1)
        self.inner.merge = merge
        with torch.no_grad():
            merge.weight[:, 8:] /= 20

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule("inner.merge")(torch.cat([torch.tanh(x), 20 * torch.tanh(-2 * x)], dim=1))
        return out


def test_layers_of_a_network_are_replaced_by_name() -> None:
    network, x = Skip(), torch.randn(4, 8, 5, 5)
    expected = network(x)
    split_layers(network, {"inner.merge": (8, 8)})
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert names == ["inner.merge.parts.0", "inner.merge.parts.1"] == [part_name("inner.merge", i) for i in range(2)]


def test_each_part_is_observed_on_its_own() -> None:
    network, x = Skip(), torch.randn(4, 8, 5, 5)
    split_layers(network, {"inner.merge": (8, 8)})
    names = [part_name("inner.merge", i) for i in range(2)]
    with observe_activations(network, names, names, 1) as seen, torch.no_grad():
        network(x)
    assert [round(seen[f"{name}.input"].high) for name in names] == [1, 20]


def _snr_db(network: nn.Module, names: Sequence[str], precision: str) -> float:
    """Of the network with these convolutions quantized."""
    op: Op = "Conv"
    shapes = [tuple(network.get_parameter(f"{name}.weight").shape) for name in names]
    layers = [Layer(name, op, "inner", shape, 1, name) for name, shape in zip(names, shapes, strict=True)]
    x = torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    with observe_activations(network, names, names, 1) as seen, torch.no_grad():
        expected = network(x)
    quantizer = Quantizer(network, layers, seen, PLACEMENTS["onnxruntime"], QuantizationSettings())
    with torch.no_grad():
        found = fake_quantized(network, quantizer.quantize(Precision.parse(precision)))(x)
    return float(10 * torch.log10(expected.square().mean() / (found - expected).square().mean()))


def test_concatenation_of_two_ranges_gains_six_decibels_at_four_bit_activations() -> None:
    whole, split = Skip(), Skip()
    split_layers(split, {"inner.merge": (8, 8)})
    plain = _snr_db(whole, ["inner.merge"], "w8a4")
    assert _snr_db(split, [part_name("inner.merge", i) for i in range(2)], "w8a4") > plain + 6
