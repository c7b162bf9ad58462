"""Stages `quantize-<precision>`: write the graph of one precision, and verify it against its oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.quantizers.scale_type import with_scales_in
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.checks.verify import RUNS, VERIFIED_STATES, batches, full_precision_outputs, verify
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.layer_records import precision_record
from ptqd_export.stages.precisions.learned_rounding import SUMMARY, load_reconstruction
from ptqd_export.stages.precisions.nearest_rounding import Sources, rounded_to_nearest
from ptqd_export.stages.reporter import Reporter, each


def make_quantized_graph(
    context: BuildContext, precision: Precision, sources: Sources, learned: Path | None, folder: Path, reporter: Reporter
) -> None:
    """Write `<precision>.onnx` and `precision.json` (layers, bit operations, results of verification, cost of learned rounding).

    `learned` is the folder of the stage that learned the rounding, or None if weights are rounded to nearest.
    """
    network, model = TracedNetwork.load(sources.prepared), prepared_model(context, sources.prepared)
    dtype = torch.bfloat16 if context.high_precision == "bf16" else torch.float32
    checked = load_states(sources.states).first(VERIFIED_STATES)
    runs = RUNS + (dtype != torch.float32) + (not sources.reference)
    done = each(reporter, len(network.layers) + runs * batches(checked))
    nearest = rounded_to_nearest(context, precision, sources, network, model, done)
    layers = nearest if learned is None else load_reconstruction(learned, nearest)
    layers = with_scales_in(context.high_precision, layers)
    path = folder / f"{precision.name}.onnx"
    float32 = _write_graphs(context, sources.prepared, layers, path)
    check_graph(context.placement, path, layers)
    if not sources.reference:
        sources.reference.append(full_precision_outputs(model, checked, done))
    (reference,) = sources.reference
    found = verify(model, path, layers, checked, reference=reference, backend=context.backend, float32=float32, dtype=dtype, on_batch=done)
    took = None if learned is None else json.loads((learned / SUMMARY).read_text())
    record = {
        "reconstruction": took,
        "verification": asdict(found),
        **precision_record(context, precision, network, layers, sources.slower),
    }
    (folder / "precision.json").write_text(json.dumps(record, indent=1))


def _write_graphs(context: BuildContext, prepared: Path, layers: Sequence[QuantizedLayer], path: Path) -> Path:
    """Write the quantized graph in the plan's high precision. Returns the path of the same graph in float32."""
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
