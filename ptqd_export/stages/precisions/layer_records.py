"""The record of a precision in `precision.json`: bit operations, and the rule of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.placement import HIGH_PRECISION_BITS, Rule, rule
from calib.quantizers.rules.precision import FLOAT_WIDTHS, Precision
from ptqd_export.graph.sizes.bit_operations import bit_operations
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.tracing import TracedNetwork


def precision_record(
    context: BuildContext,
    precision: Precision,
    network: TracedNetwork,
    layers: Sequence[QuantizedLayer],
    slower: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the bit operations, and a record of every layer of the network."""
    float_bits = FLOAT_WIDTHS.get(precision.name, HIGH_PRECISION_BITS[context.high_precision])
    rules = [(layer, rule(layer, precision, context.placement, context.overrides(slower))) for layer in network.layers]
    by_name = {layer.layer.name: layer for layer in layers}
    return {
        "bit_operations": asdict(bit_operations(rules, network.macs, float_bits)),
        "layers": [_layer_record(layer.name, layer.op, layer.role, rule, by_name.get(layer.name)) for layer, rule in rules],
    }


def _layer_record(name: str, op: str, role: str, rule: Rule, quantized: QuantizedLayer | None) -> dict[str, Any]:
    """Return the bit widths and activation scales of a layer. The per-channel scales of its weight are in the graph."""
    record: dict[str, Any] = {
        "name": name,
        "op": op,
        "role": role,
        "weight_bits": rule.weight_bits,
        "activation_bits": rule.activation_bits,
        "reason": rule.reason,
    }
    if quantized is not None:
        record |= {"input": _scale(quantized.input), "output": _scale(quantized.output)}
    return record


def _scale(quantizer: ActivationQuantizer | None) -> dict[str, float] | None:
    return None if quantizer is None else {"scale": quantizer.scale, "zero_point": quantizer.zero_point}
