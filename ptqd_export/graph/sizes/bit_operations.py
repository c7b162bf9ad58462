"""Bit operations: multiply-accumulates times weight bits times activation bits, the cost measure of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule

_FULL_BITS = 32


@dataclass(frozen=True)
class BitOperations:
    """By which factor bit operations are reduced relative to float32.

    Attributes:
        layers_saved: factor over the layers whose weights and activations are both integers, the figure that papers quote.
        all_saved: factor over every multiply-accumulate of the network; attention products and float layers count with the bits of their
            type.
    """

    layers_saved: float
    all_saved: float


def bit_operations(layers: Sequence[tuple[Layer, Rule]], macs: int, float_bits: int = _FULL_BITS, added: int = 0) -> BitOperations:
    """Return the savings of one precision.

    Args:
        layers: every weighted layer with its rule.
        macs: multiply-accumulates of the whole network per sample.
        float_bits: bit width of everything that is not quantized.
        added: multiply-accumulates in float that the network in full precision does not have.
    """
    costs = [(layer.macs, layer_bit_operations(layer, rule, float_bits)) for layer, rule in layers]
    integer = [cost for cost, (_, rule) in zip(costs, layers, strict=True) if rule.weight_bits and rule.activation_bits]
    elsewhere = macs - sum(layer for layer, _ in costs)
    return BitOperations(_saved(integer), _saved([*costs, (elsewhere, (elsewhere + added) * float_bits**2)]))


def layer_bit_operations(layer: Layer, rule: Rule, float_bits: int) -> int:
    """Return the bit operations of a layer and its branch per sample; `float_bits` is the bit width of floats and of scales."""
    branch = 0.0 if rule.low_rank is None else layer.macs * rule.low_rank * sum(layer.shape) / layer.weights * float_bits**2
    return round(branch + layer.macs * (rule.stored_weight_bits(float_bits) or float_bits) * (rule.stored_activation_bits or float_bits))


def _saved(costs: Sequence[tuple[int, int]]) -> float:
    full = sum(macs for macs, _ in costs) * _FULL_BITS**2
    return full / sum(cost for _, cost in costs) if full else 1.0
