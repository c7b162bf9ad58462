"""Stages `quantize-<precision>`: the graph of one precision, held against its oracle."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from calib.observers import Observed
from calib.placement import Rule, rule
from calib.precision import Precision
from calib.quantize import QuantizationSettings, Quantizer
from calib.quantized_layer import QuantizedLayer
from calib.quantizers import ActivationQuantizer
from engines.errors import UsageError
from ptqd_export.bit_operations import bit_operations
from ptqd_export.build.activations import load_observations
from ptqd_export.build.context import FULL_PRECISION, BuildContext
from ptqd_export.build.preparation import prepared_model
from ptqd_export.build.reconstruction import SUMMARY, load_reconstruction, make_reconstruction
from ptqd_export.build.stages import Reporter
from ptqd_export.build.states import load_states
from ptqd_export.build.tracing import Network
from ptqd_export.graph_files import save_graph
from ptqd_export.integer_kernels import check_integer_kernels
from ptqd_export.models.base import LoadedModel
from ptqd_export.passes.quantization import InsertQuantization
from ptqd_export.verify import verify

VERIFIED_STATES = 64


def make_quantized_graph(
    context: BuildContext,
    precision: Precision,
    prepared: Path,
    states: Path,
    seen: Path,
    learned: Path | None,
    folder: Path,
    _reporter: Reporter,
) -> None:
    """Writes `<precision>.onnx` and `precision.json` (layers, bit operations, what verification measured, what learned rounding took).

    `learned` is the folder of the stage that learned its rounding, None where weights are rounded to the nearest.
    """
    network, model = Network.load(prepared), prepared_model(context, prepared)
    nearest = _resolved(context, precision, network, model, load_observations(seen))
    layers = nearest if learned is None else load_reconstruction(learned, nearest)
    path = folder / f"{precision.name}.onnx"
    _write_graph(context, prepared, layers, path)
    found = verify(model, path, layers, load_states(states).first(VERIFIED_STATES))
    kernels = check_integer_kernels(path, layers)
    took = None if learned is None else json.loads((learned / SUMMARY).read_text())
    record = {
        "reconstruction": took,
        "integer_kernels": kernels,
        "verification": asdict(found),
        **_record(context, precision, network, layers),
    }
    (folder / "precision.json").write_text(json.dumps(record, indent=1))


def make_learned_rounding(
    context: BuildContext, precision: Precision, prepared: Path, states: Path, seen: Path, folder: Path, reporter: Reporter
) -> None:
    """Writes what `make_reconstruction` learns; goes on where an earlier run was interrupted."""
    unit = context.plan.quantization.rounding
    assert unit != "nearest"
    model = prepared_model(context, prepared)
    nearest = _resolved(context, precision, Network.load(prepared), model, load_observations(seen))
    make_reconstruction(context, model, unit, nearest, states, folder, reporter)


def _resolved(
    context: BuildContext, precision: Precision, network: Network, model: LoadedModel, seen: Mapping[str, Observed]
) -> list[QuantizedLayer]:
    """Every layer that gets integers, with its scales, rounded to the nearest."""
    settings = context.plan.quantization
    _check_patterns(settings.keep_float, [layer.name for layer in network.layers])
    chosen = QuantizationSettings(settings.weight_scale, settings.activation_scale, settings.keep_float)
    return Quantizer(model.adapter.network, network.layers, seen, context.placement, chosen).quantize(precision)


def _write_graph(context: BuildContext, prepared: Path, layers: Sequence[QuantizedLayer], path: Path) -> None:
    graph = ir.load(prepared / f"{FULL_PRECISION}.onnx")
    ir.passes.Sequential(InsertQuantization(layers, context.placement), common.RemoveUnusedNodesPass())(graph)
    save_graph(graph, path)


def _record(context: BuildContext, precision: Precision, network: Network, layers: Sequence[QuantizedLayer]) -> dict[str, Any]:
    """Bit operations, and what every layer of the network got."""
    keep_float = context.plan.quantization.keep_float
    rules = [(layer, rule(layer, precision, context.placement, keep_float)) for layer in network.layers]
    by_name = {layer.layer.name: layer for layer in layers}
    return {
        "bit_operations": asdict(bit_operations(rules, network.macs)),
        "layers": [_layer_record(layer.name, layer.op, layer.role, rule, by_name.get(layer.name)) for layer, rule in rules],
    }


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
