"""The record of a precision in `precision.json`: bit operations, and the rule of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import HIGH_PRECISION_BITS, LayerOverrides, Rule, rule
from calib.quantizers.rules.precision import BLOCK_FORMATS, FLOAT_WIDTHS, Precision
from ptqd_export.graph.sizes.bit_operations import bit_operations, layer_bit_operations
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.tracing import TracedNetwork


def precision_record(
    context: BuildContext,
    precision: Precision,
    network: TracedNetwork,
    layers: Sequence[QuantizedLayer],
    overrides: LayerOverrides,
    attention_macs: int = 0,
) -> dict[str, Any]:
    """Return the bit operations, and a record of every layer of the network. `attention_macs` are those of quantized products."""
    float_bits = FLOAT_WIDTHS.get(precision.name, HIGH_PRECISION_BITS[context.high_precision])
    rules = [(layer, rule(layer, precision, context.placement, overrides)) for layer in network.layers]
    by_name = {layer.layer.name: layer for layer in layers}
    return {
        "bit_operations": asdict(
            bit_operations(rules, network.macs, float_bits, network.added, [(attention_macs, attention_macs * 8 * 8)])
        ),
        "layers": [_layer_record(layer, rule, float_bits, by_name.get(layer.name)) for layer, rule in rules],
    }


def add_groups(records: Sequence[dict[str, Any]], bounds: Sequence[float], groups: Sequence[Sequence[QuantizedLayer]]) -> None:
    """Add the activation scales of the further groups of steps to the records of layers whose activations are quantized.

    Args:
        records: records of the layers, with the scales of the noisiest group.
        bounds: bound that the timesteps of each further group lie below.
        groups: quantized layers of each further group.
    """
    scales: dict[str, list[dict[str, Any]]] = {}
    for below, layers in zip(bounds, groups, strict=True):
        for layer in layers:
            if layer.input is not None or layer.output is not None:
                found = {"below": below, "input": _scale(layer.input), "output": _scale(layer.output)}
                scales.setdefault(layer.layer.name, []).append(found)
    for record in records:
        if record["name"] in scales:
            record["groups"] = scales[record["name"]]


def add_rotations(records: Sequence[dict[str, Any]], blocks: Mapping[str, int]) -> None:
    """Add the sizes of the blocks of rotated inputs to the records of the layers that read them."""
    for record in records:
        if record["name"] in blocks:
            record["rotation"] = blocks[record["name"]]


def add_learned(records: Sequence[dict[str, Any]], took: Mapping[str, Any]) -> None:
    """Add what was learned and kept to the records of the layers, from the summary of the stage that learned it."""
    kept = {name: block["kept"] for block in took["blocks"] for name in block["layers"]}
    for record in records:
        record["learned"] = kept.get(record["name"], [])


def _layer_record(layer: Layer, rule: Rule, float_bits: int, quantized: QuantizedLayer | None) -> dict[str, Any]:
    """Return the bits, bit operations per sample and scales of a layer. The graph holds every scale of the weight."""
    record: dict[str, Any] = {
        "name": layer.name,
        "op": layer.op,
        "role": layer.role,
        "weight_bits": rule.weight_bits,
        "activation_bits": rule.activation_bits,
        "form": rule.form,
        "activation_form": rule.activation_form,
        "low_rank": rule.low_rank,
        "reason": rule.reason,
        "bit_operations": layer_bit_operations(layer, rule, float_bits),
    }
    if quantized is not None:
        record |= {"weight": _scales(quantized), "input": _scale(quantized.input), "output": _scale(quantized.output)}
    return record


def _scales(layer: QuantizedLayer) -> dict[str, float | None]:
    scale, form = layer.weight.scale, layer.rule.form
    group = BLOCK_FORMATS[form].size if form in BLOCK_FORMATS else layer.rule.group
    return {"channels": len(scale), "group": group, "smallest": float(scale.min()), "largest": float(scale.max())}


def _scale(quantizer: ActivationQuantizer | None) -> dict[str, float] | None:
    return None if quantizer is None else {"scale": quantizer.scale, "zero_point": quantizer.zero_point}
