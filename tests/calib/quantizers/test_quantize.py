"""From observations to quantized layers: which quantizers are shared, and which bits they get."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from calib.quantizers.observers import ObservedActivations, observe_activations
from calib.quantizers.outputs.output_error import ReadingLayer
from calib.quantizers.quantize import ActivationQuantizers, QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import PLACEMENTS, LayerOverrides
from calib.quantizers.rules.precision import Precision
from calib.quantizers.scale_search import activation_scale, weight_scale

ORT = PLACEMENTS["onnxruntime"]


class Attention(nn.Module):
    """`query` and `key` read one tensor; `out` another."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 4)
        self.key = nn.Linear(6, 4, bias=False)
        self.out = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out((self.query(x) * self.key(x)).mT)
        return out


DEFAULT = QuantizationSettings()
LAYERS = (
    Layer("query", "MatMul", "inner", (4, 6), 24, source="query"),
    Layer("key", "MatMul", "inner", (4, 6), 24, source="query"),
    Layer("out", "Conv", "inner", (3, 4, 1), 12, source="out"),
)


@pytest.fixture
def network() -> Attention:
    torch.manual_seed(0)
    return Attention()


@pytest.fixture
def seen(network: Attention) -> Mapping[str, ObservedActivations]:
    with observe_activations(network, ["query", "out"], ["query", "key", "out"], 1) as seen, torch.no_grad():
        network(torch.randn(50, 7, 6, generator=torch.Generator().manual_seed(1)))
    return seen


def _quantize(
    network: nn.Module, seen: Mapping[str, ObservedActivations], precision: str, settings: QuantizationSettings = DEFAULT
) -> dict[str, QuantizedLayer]:
    quantizer = Quantizer(network, LAYERS, seen, ORT, settings)
    return {layer.layer.name: layer for layer in quantizer.quantize(Precision.parse(precision))}


def test_layers_that_read_one_tensor_share_its_quantizer(network: Attention, seen: Mapping[str, ObservedActivations]) -> None:
    layers = _quantize(network, seen, "w4a6")
    assert layers["key"].input is layers["query"].input
    observed = seen["query.input"]
    readers = [ReadingLayer(seen[f"{name}.output"].rows, getattr(network, name).weight) for name in ("query", "key")]
    assert layers["query"].input == activation_scale(
        observed.values, observed.low, observed.high, bits=6, signed=False, symmetric=False, readers=readers
    )
    assert layers["out"].input != layers["query"].input


def test_outputs_are_quantized_in_their_container_and_only_where_the_placement_says(
    network: Attention, seen: Mapping[str, ObservedActivations]
) -> None:
    layers = _quantize(network, seen, "w4a4")
    assert layers["query"].output is None
    assert layers["out"].output is not None
    assert layers["out"].output.bits == 8
    assert layers["out"].input is not None
    assert layers["out"].input.bits == 4


@pytest.mark.parametrize(("precision", "bits"), [("w8a8", 8), ("w4a8", 4), ("w3a16", 3)])
def test_weights_are_searched_at_the_bits_of_the_precision(
    network: Attention, seen: Mapping[str, ObservedActivations], precision: str, bits: int
) -> None:
    layer = _quantize(network, seen, precision)["query"]
    expected = weight_scale(network.query.weight, bits, rows=seen["query.output"].rows)
    assert layer.weight.bits == bits
    torch.testing.assert_close(layer.weight.scale, expected.scale, rtol=0, atol=0)
    assert torch.equal(layer.integers, expected.integers(network.query.weight))
    assert torch.equal(layer.bias if layer.bias is not None else torch.empty(0), network.query.bias)


def test_layer_without_bias_has_none(network: Attention, seen: Mapping[str, ObservedActivations]) -> None:
    assert _quantize(network, seen, "w8a8")["key"].bias is None


def test_sixteen_activation_bits_quantize_weights_only(network: Attention, seen: Mapping[str, ObservedActivations]) -> None:
    layers = _quantize(network, seen, "w4a16")
    assert len(layers) == 3
    assert all(layer.input is None and layer.output is None for layer in layers.values())


def test_float_precisions_and_layers_kept_by_the_plan_are_not_quantized(
    network: Attention, seen: Mapping[str, ObservedActivations]
) -> None:
    assert _quantize(network, seen, "fp32") == {}
    assert set(_quantize(network, seen, "w8a8", QuantizationSettings(overrides=LayerOverrides(keep_float=("que*", "nothing"))))) == {
        "key",
        "out",
    }


def test_criteria_of_the_plan_are_used(network: Attention, seen: Mapping[str, ObservedActivations]) -> None:
    searched = _quantize(network, seen, "w4a4")["out"]
    largest = _quantize(network, seen, "w4a4", QuantizationSettings(weight_scale="max", activation_scale="max"))["out"]
    torch.testing.assert_close(largest.weight.scale, network.out.weight.detach().abs().amax(dim=(1, 2)) / 7)
    assert largest.input is not None
    assert searched.input is not None
    observed = seen["out.input"]
    assert largest.input.scale == pytest.approx((observed.high - observed.low) / 15)
    assert searched.input.scale < largest.input.scale
    assert not torch.equal(searched.weight.scale, largest.weight.scale)


def test_channel_of_zero_weights_keeps_its_large_bias(network: Attention, seen: Mapping[str, ObservedActivations]) -> None:
    with torch.no_grad():
        network.out.weight[1] = 0
        network.out.bias[1] = -2000.0  # type: ignore[index]  # a tensor, as the layer has a bias
    layer = _quantize(network, seen, "w8a8")["out"]
    found = layer.dequantized_bias(torch.float64)
    assert found is not None
    assert network.out.bias is not None
    torch.testing.assert_close(found[1].item(), -2000.0, rtol=1e-6, atol=0)
    assert (layer.integers[1] == 0).all()
    others = weight_scale(network.out.weight, 8, rows=seen["out.output"].rows).scale[[0, 2]]
    torch.testing.assert_close(layer.weight.scale[[0, 2]], others, rtol=0, atol=0)


def test_precisions_share_the_quantizers_of_activations_that_they_have_in_common(
    network: Attention, seen: Mapping[str, ObservedActivations]
) -> None:
    found: ActivationQuantizers = {}
    first = Quantizer(network, LAYERS, seen, ORT, DEFAULT, found).quantize(Precision.parse("w8a8"))
    searched = dict(found)
    assert {(tensor, bits) for tensor, bits, *_ in searched} >= {("query.input", 8), ("out.input", 8)}
    without_values = {name: ObservedActivations(drawn_rows=one.drawn_rows) for name, one in seen.items()}
    blind = Quantizer(network, LAYERS, without_values, ORT, DEFAULT, found).quantize(Precision.parse("w4a8"))  # nothing left to search
    assert [layer.input for layer in blind] == [layer.input for layer in first]
    assert [layer.weight.bits for layer in blind] != [layer.weight.bits for layer in first]
    Quantizer(network, LAYERS, seen, ORT, DEFAULT, found).quantize(Precision.parse("w4a6"))
    assert found.keys() > searched.keys()
    assert all(found[key] is value for key, value in searched.items())
