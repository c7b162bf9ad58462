"""A block of the network in the form in which it is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from calib.quantizers.oracle import attach_branch
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.rounding.adaround import SoftRounding
from calib.rounding.block_rows import Arguments
from calib.rounding.learned_scale import LearnedScale, StraightThrough, learned_scale
from calib.rounding.soft_weight import Soften


class SoftBlock:
    """A block with soft weights and learned activation scales in place of its layers' own.

    Args:
        module: the block in full precision; only borrowed, and not modified.
        layers: the block's layers, by their names within the block.
        weights: the weights to quantize, float32, by the same names.
        soften: makes a weight soft.
        device: device of the block.

    Attributes:
        weights: soft weights by layer.
        scales: learned scales by tensor, because layers that read the same tensor share its quantizer.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, QuantizedLayer],
        weights: Mapping[str, Tensor],
        soften: Soften,
        device: torch.device,
    ) -> None:
        self._module = module
        self._layers = layers
        self.weights = {name: soften(weights[name], layer.weight) for name, layer in layers.items()}
        quantizers = {tensor: quantizer for layer in layers.values() for tensor, quantizer in activations(layer).items()}
        self.scales = {tensor: learned_scale(quantizer, device) for tensor, quantizer in quantizers.items()}

    def __call__(self, arguments: Arguments) -> Tensor:
        weights = {f"{name}.weight".lstrip("."): weight() for name, weight in self.weights.items()}
        out: Tensor = functional_call(self._module, weights, *arguments)
        return out

    def undecided(self, beta: float) -> Tensor | float:
        """Mean over all weights whose rounding is learned of `1 - |2h - 1|^beta`; 0 if there are none."""
        roundings = [weight for weight in self.weights.values() if isinstance(weight, SoftRounding)]
        values = sum(rounding.V.numel() for rounding in roundings)
        return torch.stack([rounding.undecided(beta) for rounding in roundings]).sum() / values if roundings else 0.0

    def hardened(self) -> dict[str, QuantizedLayer]:
        """Return the layers with what they have learned."""
        learned = {tensor: scale.quantizer() for tensor, scale in self.scales.items()}
        return {
            name: replace(with_activations(layer, learned), integers=self.weights[name].integers()) for name, layer in self._layers.items()
        }

    def unrounded(self) -> dict[str, Tensor]:
        """Return the weights that were rounded, float32, by the names of the layers."""
        return {name: weight.unrounded().detach() for name, weight in self.weights.items()}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the branches and the learned fake quantizers to the layers within a `with` block."""
        handles = list[RemovableHandle]()
        for name, layer in self._layers.items():
            part = self._module.get_submodule(name)
            if layer.branch is not None:
                handles += attach_branch(part, layer.branch)
            if layer.input is not None:
                handles.append(part.register_forward_pre_hook(_before(self.scales[input_tensor(layer)])))
            if layer.output is not None:
                handles.append(part.register_forward_hook(_after(self.scales[output_tensor(layer)])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def input_tensor(layer: QuantizedLayer) -> str:
    return f"{layer.layer.source}.input"


def output_tensor(layer: QuantizedLayer) -> str:
    return f"{layer.layer.name}.output"


def activations(layer: QuantizedLayer) -> dict[str, ActivationQuantizer]:
    """The layer's activation quantizers, by the tensor that they quantize."""
    pairs = {input_tensor(layer): layer.input, output_tensor(layer): layer.output}
    return {tensor: quantizer for tensor, quantizer in pairs.items() if quantizer is not None}


def with_activations(layer: QuantizedLayer, quantizers: Mapping[str, ActivationQuantizer]) -> QuantizedLayer:
    """Return the layer with the given quantizers for its own tensors."""
    own = {**activations(layer), **quantizers}
    return replace(
        layer,
        input=None if layer.input is None else own[input_tensor(layer)],
        output=None if layer.output is None else own[output_tensor(layer)],
    )


def _before(scale: LearnedScale | StraightThrough) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _module, args: (scale(args[0]), *args[1:])


def _after(scale: LearnedScale | StraightThrough) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda _module, _args, out: scale(out)
