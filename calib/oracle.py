"""The fake-quantized network in torch: the numerical oracle that exported graphs must match."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from calib.quantized_layer import QuantizedLayer
from calib.quantizers import ActivationQuantizer


def fake_quantized(network: nn.Module, layers: Iterable[QuantizedLayer], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of the network that computes what the quantized graph means, in float32 or float64.

    Args:
        network: the full-precision network, left as it is.
        layers: the quantized layers; the others stay in float.
        dtype: of the arithmetic. Scales are float32 values in either.
    """
    oracle = nn.Module.to(copy.deepcopy(network), dtype).eval()  # the `to` of diffusers' own networks warns of every cast
    for layer in layers:
        fake_quantize(oracle.get_submodule(layer.layer.name), layer, dtype)
    return oracle


def fake_quantize(module: nn.Module, layer: QuantizedLayer, dtype: torch.dtype) -> None:
    """Give a module its dequantized weight and bias, and fake quantizers around it."""
    with torch.no_grad():
        module.get_parameter("weight").copy_(layer.weight.dequantize(layer.integers, dtype))
        bias = layer.dequantized_bias(dtype)
        if bias is not None:
            module.get_parameter("bias").copy_(bias)
    if layer.input is not None:
        module.register_forward_pre_hook(_before(layer.input))
    if layer.output is not None:
        module.register_forward_hook(_after(layer.output))


def _before(quantizer: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (quantizer.fake(args[0]), *args[1:])

    return hook


def _after(quantizer: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return quantizer.fake(out)

    return hook
