"""The oracle against integer arithmetic of this test's own: the sums of products of integers that kernels compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule
from calib.quantizers.scale_search import weight_scale

Array = NDArray[Any]
INPUT = ActivationQuantizer(8, signed=False, scale=float(np.float32(0.031)), zero_point=117)
OUTPUT = ActivationQuantizer(8, signed=False, scale=float(np.float32(0.077)), zero_point=130)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).mean(dim=(2, 3)))
        return out


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def _layer(module: nn.Conv2d | nn.Linear, name: str, rule: Rule) -> QuantizedLayer:
    assert rule.weight_bits is not None
    assert module.bias is not None
    weight = module.weight.detach()
    quantizer = weight_scale(weight, rule.weight_bits)
    return QuantizedLayer(
        Layer(name, "Conv" if weight.ndim == 4 else "Gemm", "inner", tuple(weight.shape), 1, name), rule, quantizer.integers(weight),
        quantizer, INPUT if rule.activation_bits else None, OUTPUT if rule.output_bits else None, module.bias.detach(),
    )  # fmt: skip


def _integers(x: Array, quantizer: ActivationQuantizer) -> Array:
    return np.asarray(np.clip(np.rint(x / quantizer.scale) + quantizer.zero_point, 0, 255), np.int64)


def _output(accumulated: Array, layer: QuantizedLayer, axis: int) -> Array:
    """From an integer sum to the layer's output: add the int32 bias, rescale, quantize."""
    shape = [-1 if i == axis else 1 for i in range(accumulated.ndim)]
    bias, weight_scales = layer.bias_integers().numpy().astype(np.int64), layer.weight.scale.double().numpy()
    real = (accumulated + bias.reshape(shape)) * (weight_scales * INPUT.scale).reshape(shape)
    return np.asarray((_integers(real, OUTPUT) - OUTPUT.zero_point) * OUTPUT.scale)


def _conv_integers(x: Array, weight: Array) -> Array:
    """Stride 2, padding 1 with the integer that means zero."""
    padded = np.pad(x - INPUT.zero_point, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    out = np.zeros((len(x), len(weight), rows, columns), dtype=np.int64)
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + 2 * rows : 2, j : j + 2 * columns : 2]
            out += np.einsum("nchw,oc->nohw", window, weight[:, :, i, j].astype(np.int64))
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_convolution_is_integer_arithmetic(network: Network, bits: int) -> None:
    layer = _layer(network.conv, "conv", Rule(bits, 8, 8, "int32"))
    oracle = fake_quantized(network, [layer], torch.float64)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = _output(_conv_integers(_integers(x.numpy(), INPUT), layer.integers.numpy()), layer, axis=1)
    with torch.no_grad():
        found = oracle.get_submodule("conv")(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("bits", [8, 3])
def test_linear_layer_is_integer_arithmetic(network: Network, bits: int) -> None:
    layer = _layer(network.fc, "fc", Rule(bits, 8, 8, "int32"))
    oracle = fake_quantized(network, [layer], torch.float64)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    accumulated = (_integers(x.numpy(), INPUT) - INPUT.zero_point) @ layer.integers.numpy().astype(np.int64).T
    with torch.no_grad():
        found = oracle.get_submodule("fc")(x).numpy()
    np.testing.assert_allclose(found, _output(accumulated, layer, axis=1), rtol=0, atol=1e-9)
    assert len(np.unique(found)) > 10


def test_weight_only_layer_keeps_float_activations_and_its_bias(network: Network) -> None:
    layer = _layer(network.fc, "fc", Rule(8, None, None, "float"))
    oracle = fake_quantized(network, [layer])
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    weight = layer.integers.numpy() * layer.weight.scale.numpy()[:, None]
    with torch.no_grad():
        found = oracle.get_submodule("fc")(x).numpy()
    np.testing.assert_allclose(found, x.numpy() @ weight.T + network.fc.bias.detach().numpy(), atol=1e-6)


def test_network_itself_and_unlisted_layers_stay_as_they_are(network: Network) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(x)
        oracle = fake_quantized(network, [_layer(network.conv, "conv", Rule(8, 8, 8, "int32"))])
        assert not torch.equal(oracle(x), before)
        assert torch.equal(network(x), before)
    assert torch.equal(oracle.get_submodule("fc").get_parameter("weight"), network.fc.weight)
    assert not network.conv._forward_pre_hooks


def test_an_oracle_holds_integers_and_no_float_weights(network: Network) -> None:
    layers = [_layer(network.conv, "conv", Rule(4, 8, 8, "int32")), _layer(network.fc, "fc", Rule(8, 8, 8, "int32"))]
    held = list(fake_quantized(network, layers, torch.float64).parameters())
    assert sorted(map(str, {parameter.dtype for parameter in held})) == ["torch.float64", "torch.int8"]
    assert {tuple(parameter.shape) for parameter in held if parameter.dtype == torch.int8} == {(4, 3, 3, 3), (5, 4)}
    assert sum(parameter.nbytes for parameter in held if parameter.dtype == torch.float64) == 8 * (4 + 5)
    assert {parameter.data_ptr() for parameter in held} >= {layer.integers.data_ptr() for layer in layers}


def test_a_weight_is_the_product_of_integers_and_scales(network: Network) -> None:
    layer = _layer(network.conv, "conv", Rule(8, 8, 8, "int32"))
    weight = fake_quantized(network, [layer], torch.float64).get_submodule("conv").weight
    expected = layer.integers.numpy().astype(np.float64) * layer.weight.scale.numpy().astype(np.float64)[:, None, None, None]
    assert isinstance(weight, Tensor)
    np.testing.assert_array_equal(weight.numpy(), expected)


def test_single_precision_is_double_precision_but_for_rounding_ties(network: Network) -> None:
    layers = [_layer(network.conv, "conv", Rule(4, 8, 8, "int32")), _layer(network.fc, "fc", Rule(4, 8, 8, "int32"))]
    single, double = (fake_quantized(network, layers, dtype).get_submodule("conv") for dtype in (torch.float32, torch.float64))
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        steps = (single(x).double() - double(x.double())).abs() / OUTPUT.scale
    assert steps.max() < 1.0001
    assert (steps > 0.5).double().mean() < 1e-3


def test_oracle_of_no_layers_is_the_network_in_the_dtype_asked_for(network: Network) -> None:
    oracle = fake_quantized(network, [], torch.float64)
    assert {parameter.dtype for parameter in oracle.parameters()} == {torch.float64}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(oracle(x.double()).float(), network(x))


def test_networks_that_complain_about_casts_are_cast_without_asking_them() -> None:
    class Complaining(Network):
        def to(self, *_args: Any, **_named: Any) -> Any:
            raise AssertionError("diffusers warns here")

    torch.manual_seed(0)
    assert fake_quantized(Complaining(), [], torch.float64).get_parameter("fc.weight").dtype == torch.float64
