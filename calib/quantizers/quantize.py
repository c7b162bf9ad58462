"""Turns observed activations into quantized layers, with every scale of one precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from calib.quantizers.floats.mxfp8 import Mxfp8ActivationQuantizer, Mxfp8WeightQuantizer
from calib.quantizers.floats.nvfp4 import Nvfp4ActivationQuantizer
from calib.quantizers.low_rank_branch import LowRankBranches
from calib.quantizers.observers import ObservedActivations
from calib.quantizers.outputs.output_error import ReadingLayer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, Float8ActivationQuantizer, Float8WeightQuantizer, WeightQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import NO_OVERRIDES, LayerOverrides, Placement, Rule, lacking_branch, rule
from calib.quantizers.rules.precision import Form, Precision
from calib.quantizers.scale_search import Criterion, activation_scale, nvfp4_weight, weight_scale

ActivationQuantizers: TypeAlias = dict[tuple[str, int, Form, int | None], ActivationQuantizer]
"""Activation quantizers by tensor, bits, form, and rank of the branches beside the layers that read the tensor."""


@dataclass(frozen=True)
class QuantizationSettings:
    """How scales are found, and which layers are exempt from the precision."""

    weight_scale: Criterion = "mse"
    activation_scale: Criterion = "mse"
    overrides: LayerOverrides = NO_OVERRIDES


class Quantizer:
    """Quantizes a network's layers at any precision from one set of observations.

    Args:
        network: full-precision network.
        layers: weighted layers of the network.
        seen: observations of `calib.quantizers.observers.observe_activations`, by `<layer>.input` (of sources) and `<layer>.output`.
        activations: quantizers found earlier for the same observations; new ones are added.
        branches: low-rank branches of the network; None finds them from these observations.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        seen: Mapping[str, ObservedActivations],
        placement: Placement,
        settings: QuantizationSettings,
        activations: ActivationQuantizers | None = None,
        branches: LowRankBranches | None = None,
    ) -> None:
        self._network = network
        self._layers = layers
        self._seen = seen
        self._placement = placement
        self._settings = settings
        self._activations: ActivationQuantizers = {} if activations is None else activations
        self._branches = LowRankBranches(network, seen) if branches is None else branches

    def quantize(
        self, precision: Precision, on_layer: Callable[[], None] = lambda: None, others: Sequence[Quantizer] = ()
    ) -> list[QuantizedLayer]:
        """Return every layer that gets integers at this precision.

        Args:
            precision: the precision.
            on_layer: called after each layer of the network.
            others: quantizers of other groups of steps, whose layers will have the same weights.
        """
        found = [self._layer_or_none(layer, precision, on_layer, others) for layer in self._layers]
        return [layer for layer in found if layer is not None]

    def input_quantizer(self, layer: Layer, rule: Rule) -> ActivationQuantizer | None:
        """Return the quantizer of a layer's input; None for float."""
        return self._activation(f"{layer.source}.input", rule.activation_bits, rule)

    def output_quantizer(self, layer: Layer, rule: Rule) -> ActivationQuantizer | None:
        """Return the quantizer of a layer's output; None for float."""
        return self._activation(f"{layer.name}.output", rule.output_bits, rule)

    def _layer_or_none(
        self, layer: Layer, precision: Precision, on_layer: Callable[[], None], others: Sequence[Quantizer]
    ) -> QuantizedLayer | None:
        chosen = rule(layer, precision, self._placement, self._settings.overrides)
        quantized = None if chosen.weight_bits is None else self._layer(layer, chosen, others)
        on_layer()
        return quantized

    def _layer(self, layer: Layer, rule: Rule, others: Sequence[Quantizer]) -> QuantizedLayer:
        module = self._network.get_submodule(layer.name)
        weight = module.get_parameter("weight").detach()
        bias = module._parameters.get("bias")
        sources = [found for one in (self, *others) if (found := one.input_quantizer(layer, rule)) is not None]
        branch = None if rule.low_rank is None else self._branches.of(layer.name, rule.low_rank)
        weight = weight.float() if branch is None else branch.rest_of(weight)
        quantizer = self._weight(layer, weight, rule)
        if sources and bias is not None and rule.bias == "int32":
            smallest = min(source.scale for source in sources)
            quantizer = quantizer.at_least(bias.detach().float().abs() / (smallest * 2**30))
        return QuantizedLayer(
            layer=layer,
            rule=rule,
            integers=quantizer.integers(weight),
            weight=quantizer,
            input=self.input_quantizer(layer, rule),
            output=self.output_quantizer(layer, rule),
            bias=None if bias is None else bias.detach().float(),
            branch=branch,
        )

    def _weight(self, layer: Layer, weight: Tensor, rule: Rule) -> WeightQuantizer:
        assert rule.weight_bits is not None
        if rule.form == "e4m3":
            return Float8WeightQuantizer.of(weight)
        if rule.form == "mxfp8":
            return Mxfp8WeightQuantizer.of(weight)
        if rule.form == "nvfp4":
            return nvfp4_weight(weight, self._settings.weight_scale, self._seen[f"{layer.name}.output"].rows)
        if self._settings.weight_scale == "max":
            return weight_scale(weight, rule.weight_bits, "max", group=rule.group)
        return weight_scale(weight, rule.weight_bits, "mse", self._seen[f"{layer.name}.output"].rows, group=rule.group)

    def _activation(self, tensor: str, bits: int | None, rule: Rule) -> ActivationQuantizer | None:
        if bits is None:
            return None
        key = (tensor, bits, rule.activation_form, rule.branches)
        if key not in self._activations:
            self._activations[key] = self._search(*key)
        return self._activations[key]

    def _search(self, tensor: str, bits: int, form: Form, branches: int | None) -> ActivationQuantizer:
        seen = self._seen[tensor]
        if form == "e4m3":
            return Float8ActivationQuantizer.of(max(-seen.low, seen.high))
        if form == "nvfp4":
            return Nvfp4ActivationQuantizer.of(max(-seen.low, seen.high))
        if form == "mxfp8":
            return Mxfp8ActivationQuantizer.dynamic()
        return activation_scale(
            seen.values,
            seen.low,
            seen.high,
            bits=bits,
            signed=self._placement.signed,
            symmetric=self._placement.symmetric,
            criterion=self._settings.activation_scale,
            readers=[self._reader(layer, branches) for layer in self._layers if tensor == f"{layer.source}.input"],
        )

    def _reader(self, layer: Layer, branches: int | None) -> ReadingLayer:
        weight = self._network.get_submodule(layer.name).get_parameter("weight")
        branch = None if branches is None or lacking_branch(layer, branches) else self._branches.of(layer.name, branches)
        part = None if branch is None else branch.rest_of(weight)
        return ReadingLayer(self._seen[f"{layer.name}.output"].rows, weight, part)
