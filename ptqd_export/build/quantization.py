"""Stages `quantize-<precision>`: the graph of one precision, held against its oracle."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from calib.activation_states import States
from calib.placement import Rule, rule
from calib.precision import Precision
from calib.quantize import QuantizationSettings, Quantizer
from calib.quantized_layer import QuantizedLayer
from calib.quantizers import ActivationQuantizer
from engines.errors import UsageError
from ptqd_export.bit_operations import bit_operations
from ptqd_export.build.activations import STATES, load_observations
from ptqd_export.build.context import FULL_PRECISION, BuildContext
from ptqd_export.build.stages import Reporter
from ptqd_export.build.tracing import Network
from ptqd_export.graph_files import save_graph
from ptqd_export.integer_kernels import check_integer_kernels
from ptqd_export.passes.quantization import InsertQuantization
from ptqd_export.verify import verify

VERIFIED_STATES = 64


def make_quantized_graph(
    context: BuildContext, precision: Precision, traced: Path, states: Path, seen: Path, folder: Path, _reporter: Reporter
) -> None:
    """Writes `<precision>.onnx` and `precision.json` (layers, bit operations, what verification measured)."""
    network = Network.load(traced)
    settings = context.plan.quantization
    _check_patterns(settings.keep_float, [layer.name for layer in network.layers])
    quantizer = Quantizer(
        context.model.adapter.network,
        network.layers,
        load_observations(seen),
        context.placement,
        QuantizationSettings(settings.weight_scale, settings.activation_scale, settings.keep_float),
    )
    quantized = quantizer.quantize(precision)
    path = folder / f"{precision.name}.onnx"
    graph = ir.load(traced / f"{FULL_PRECISION}.onnx")
    ir.passes.Sequential(InsertQuantization(quantized, context.placement), common.RemoveUnusedNodesPass())(graph)
    save_graph(graph, path)
    found = verify(context.model, path, quantized, States.load(states / STATES).first(VERIFIED_STATES))
    kernels = check_integer_kernels(path, quantized)
    rules = [(layer, rule(layer, precision, context.placement, settings.keep_float)) for layer in network.layers]
    by_name = {layer.layer.name: layer for layer in quantized}
    record = {
        "integer_kernels": kernels,
        "verification": asdict(found),
        "bit_operations": asdict(bit_operations(rules, network.macs)),
        "layers": [_layer_record(layer.name, layer.op, layer.role, rule, by_name.get(layer.name)) for layer, rule in rules],
    }
    (folder / "precision.json").write_text(json.dumps(record, indent=1))


def _check_patterns(keep_float: Sequence[str], names: Sequence[str]) -> None:
    """A misspelt pattern would quantize the layer that the user wants to keep.

    Raises:
        UsageError: a pattern matches no layer, or nothing is left to quantize.
    """
    kept = {pattern: [name for name in names if fnmatch.fnmatchcase(name, pattern)] for pattern in keep_float}
    for pattern, matched in kept.items():
        if not matched:
            raise UsageError(
                "A pattern of the plan matches no layer.",
                found=f'"{pattern}" in quantization.keep_float',
                expected=f'a pattern of names such as "{names[0]}" or "{names[-1]}"',
                mend=f'did you mean "{difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]}"?',
            )
    if len(set().union(*kept.values())) == len(names):
        raise UsageError("The plan keeps every layer in float.", found="quantization.keep_float", mend="build precision fp32 instead")


def _layer_record(name: str, op: str, role: str, rule: Rule, quantized: QuantizedLayer | None) -> dict[str, Any]:
    """Bits and scales of a layer; the scales of its weight are in the graph, one a channel."""
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
