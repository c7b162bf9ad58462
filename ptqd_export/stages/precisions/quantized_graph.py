"""Stages `quantize-<precision>`: the graph of one precision, held against its oracle."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common

from calib.quantizers.quantize import ActivationQuantizers, QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.quantizers.scale_type import with_scales_in
from engines.errors import UsageError
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.checks.verify import full_precision_outputs, verify
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.models.base import LoadedModel
from ptqd_export.plan import QuantizationSection
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import Network
from ptqd_export.stages.precisions.activations import load_observations
from ptqd_export.stages.precisions.layer_records import precision_record
from ptqd_export.stages.precisions.learned_rounding import SUMMARY, load_reconstruction, make_reconstruction
from ptqd_export.stages.stage_cache import Reporter

VERIFIED_STATES = 64


@dataclass(frozen=True, eq=False)
class Sources:
    """What quantized graphs are made from.

    Attributes:
        prepared, states, seen: folders of these stages.
        slower: layers that keep integer weights and compute in float, see `calib.quantizers.rules.placement.LayerOverrides`.
        found: activation quantizers that were found from these observations so far: precisions share them.
        reference: full precision's outputs where graphs are verified, once a precision needed them; shared too.
    """

    prepared: Path
    states: Path
    seen: Path
    slower: Mapping[str, float] = field(default_factory=dict)
    found: ActivationQuantizers = field(default_factory=dict)
    reference: list[NDArray[np.floating]] = field(default_factory=list)


def make_quantized_graph(
    context: BuildContext, precision: Precision, sources: Sources, learned: Path | None, folder: Path, _reporter: Reporter
) -> None:
    """Writes `<precision>.onnx` and `precision.json` (layers, bit operations, what verification measured, what learned rounding took).

    `learned` is the folder of the stage that learned its rounding, None where weights are rounded to the nearest.
    """
    network, model = Network.load(sources.prepared), prepared_model(context, sources.prepared)
    nearest = rounded_to_nearest(context, precision, sources, network, model)
    layers = nearest if learned is None else load_reconstruction(learned, nearest)
    layers = with_scales_in(context.high_precision, layers)
    path = folder / f"{precision.name}.onnx"
    float32 = _write_graphs(context, sources.prepared, layers, path)
    check_graph(context.placement, path, layers)
    dtype = torch.bfloat16 if context.high_precision == "bf16" else torch.float32
    checked = load_states(sources.states).first(VERIFIED_STATES)
    if not sources.reference:
        sources.reference.append(full_precision_outputs(model, checked))
    (reference,) = sources.reference
    found = verify(model, path, layers, checked, reference=reference, backend=context.backend, float32=float32, dtype=dtype)
    took = None if learned is None else json.loads((learned / SUMMARY).read_text())
    record = {
        "reconstruction": took,
        "verification": asdict(found),
        **precision_record(context, precision, network, layers, sources.slower),
    }
    (folder / "precision.json").write_text(json.dumps(record, indent=1))


def make_learned_rounding(context: BuildContext, precision: Precision, sources: Sources, folder: Path, reporter: Reporter) -> None:
    """Writes what `make_reconstruction` learns; goes on where an earlier run was interrupted."""
    unit = context.plan.quantization.rounding
    assert unit != "nearest"
    model = prepared_model(context, sources.prepared)
    nearest = rounded_to_nearest(context, precision, sources, Network.load(sources.prepared), model)
    make_reconstruction(context, model, unit, nearest, sources.states, folder, reporter)


def rounded_to_nearest(
    context: BuildContext, precision: Precision, sources: Sources, network: Network, model: LoadedModel
) -> list[QuantizedLayer]:
    """Every layer that gets integers, with its scales, rounded to the nearest."""
    settings = context.plan.quantization
    _check_patterns(settings, [layer.name for layer in network.layers])
    chosen = QuantizationSettings(settings.weight_scale, settings.activation_scale, context.overrides(sources.slower))
    seen = load_observations(sources.seen)
    return Quantizer(model.adapter.network, network.layers, seen, context.placement, chosen, sources.found).quantize(precision)


def _write_graphs(context: BuildContext, prepared: Path, layers: Sequence[QuantizedLayer], path: Path) -> Path:
    """The quantized graph in the plan's high precision, and where the same graph in float32 lies."""
    graph = ir.load(prepared / f"{FULL_PRECISION}.onnx")
    ir.passes.Sequential(InsertQuantization(layers, context.placement), common.RemoveUnusedNodesPass())(graph)
    if context.high_precision == FULL_PRECISION:
        save_graph(graph, path)
        return path
    float32 = path.with_name(f"{path.stem}-{FULL_PRECISION}.onnx")
    save_graph(graph, float32)
    ir.passes.Sequential(ToHalfPrecision(context.high_precision), common.RemoveUnusedNodesPass())(graph)
    save_graph(graph, path)
    return float32


def _check_patterns(settings: QuantizationSection, names: Sequence[str]) -> None:
    """A misspelt pattern would quantize the layer that the user wants to keep.

    Raises:
        UsageError: a pattern matches no layer, or nothing is left to quantize.
    """
    for name, patterns in (("keep_float", settings.keep_float), ("keep_8bit_weights", settings.keep_8bit_weights)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(
                    "A pattern of the plan matches no layer.",
                    found=f'"{pattern}" in quantization.{name}',
                    expected=f'a pattern of names such as "{names[0]}" or "{names[-1]}"',
                    mend=f'did you mean "{difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]}"?',
                )
    if {name for pattern in settings.keep_float for name in fnmatch.filter(names, pattern)} == set(names):
        raise UsageError("The plan keeps every layer in float.", found="quantization.keep_float", mend="build precision fp32 instead")
