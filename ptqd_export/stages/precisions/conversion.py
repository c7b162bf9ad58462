"""Stage `convert-<precision>`: converts full precision to another float type."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from calib.quantizers.rules.precision import Precision
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.checks.verify import FLOAT_RUNS, batches, verify_float
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.layer_records import precision_record
from ptqd_export.stages.reporter import Reporter, each


def make_converted_graph(context: BuildContext, precision: Precision, traced: Path, states: Path, folder: Path, reporter: Reporter) -> None:
    """Write `<precision>.onnx` and `precision.json`, as the stage of a quantized precision does."""
    graph = ir.load(traced / f"{FULL_PRECISION}.onnx")
    ir.passes.Sequential(ToHalfPrecision(), common.RemoveUnusedNodesPass())(graph)
    path = folder / f"{precision.name}.onnx"
    save_graph(graph, path)
    check_graph(context.placement, path, ())
    calibration = context.plan.calibration
    checked = load_states(states).first(calibration.verify_states)
    found = verify_float(context.model, path, checked, context.backend, each(reporter, FLOAT_RUNS * batches(checked)), calibration.device)
    record = {
        "reconstruction": None,
        "verification": asdict(found),
        **precision_record(context, precision, TracedNetwork.load(traced), (), context.overrides()),
    }
    (folder / "precision.json").write_text(json.dumps(record, indent=1))
