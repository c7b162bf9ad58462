"""Stages `quantize-<precision>`: write the graph of one precision, and verify it against its oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.quantizers.scale_type import with_scales_in
from calib.quantizers.step_groups import StepGroup
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.checks.verify import RUNS, VERIFIED_STATES, Verification, batches, full_precision_outputs, verify
from ptqd_export.graph.graph_files import save_graph, save_sharing, save_with_data
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.models.base import LoadedModel
from ptqd_export.stages.build_context import FULL_PRECISION, GROUPS, BuildContext, group_path
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_groups
from ptqd_export.stages.precisions.layer_records import add_groups, precision_record
from ptqd_export.stages.precisions.learned_rounding import SUMMARY, load_reconstruction
from ptqd_export.stages.precisions.nearest_rounding import Sources, quantizers
from ptqd_export.stages.reporter import Reporter, each

LEAST_STATES = 16
"""Least number of states that the graph of a group of steps is verified at. A single group is verified at `VERIFIED_STATES`."""


def make_quantized_graph(
    context: BuildContext, precision: Precision, sources: Sources, learned: Path | None, folder: Path, reporter: Reporter
) -> None:
    """Write `<precision>.onnx` and `precision.json` (layers, bit operations, results of verification, cost of learned rounding). With
    several groups of steps, also write `groups.json` and the graphs of the other groups, which read their weights from the first group's
    file.

    `learned` is the folder of the stage that learned the rounding, or None if weights are rounded to nearest.
    """
    network, model = TracedNetwork.load(sources.prepared), prepared_model(context, sources.prepared)
    groups, path = load_groups(sources.seen), folder / f"{precision.name}.onnx"
    check = _Check(context, model, sources, reporter, groups, len(network.layers))
    found = quantizers(context, sources, network, model)
    nearest = found.rounded_to_nearest(precision, check.on_piece)
    learned_or_nearest = nearest if learned is None else load_reconstruction(learned, nearest)
    layers = [with_scales_in(context.high_precision, of_group) for of_group in found.by_group(learned_or_nearest)]
    verifications = []
    for number, of_group in enumerate(layers):
        graphs = _GroupGraphs(group_path(path, number), path if len(groups) > 1 else None)
        verifications.append(check(graphs.path, graphs.write(context, sources.prepared, of_group), number, of_group))
    took = None if learned is None else json.loads((learned / SUMMARY).read_text())
    worst = min(verifications, key=lambda one: one.exact_match - one.rounding)
    bounds = [group.below for group in groups[1:]]
    record = {
        "reconstruction": took,
        "verification": asdict(worst),
        **precision_record(context, precision, network, layers[0], sources.slower),
    }
    add_groups(record["layers"], bounds, layers[1:])
    (folder / "precision.json").write_text(json.dumps(record, indent=1))
    if bounds:
        (folder / GROUPS).write_text(json.dumps(bounds))


@dataclass(frozen=True)
class _GroupGraphs:
    """Where the graph of a group of steps is written.

    Attributes:
        path: path of the graph.
        first: path of the graph of the first group, whose file of weights all groups share; None if there is a single group.
    """

    path: Path
    first: Path | None

    def write(self, context: BuildContext, prepared: Path, layers: Sequence[QuantizedLayer]) -> Path:
        """Write the quantized graph in the plan's high precision. Returns the path of the same graph in float32."""
        graph = ir.load(prepared / f"{FULL_PRECISION}.onnx")
        ir.passes.Sequential(InsertQuantization(layers, context.placement), common.RemoveUnusedNodesPass())(graph)
        if context.high_precision == FULL_PRECISION:
            self._save(graph)
            return self.path
        float32 = self.path.with_name(f"{self.path.stem}-{FULL_PRECISION}.onnx")
        save_graph(graph, float32)
        ir.passes.Sequential(ToHalfPrecision(context.high_precision), common.RemoveUnusedNodesPass())(graph)
        self._save(graph)
        return float32

    def _save(self, graph: ir.Model) -> None:
        if self.first is None:
            save_graph(graph, self.path)
        elif self.first == self.path:
            save_with_data(graph, self.path)
        else:
            save_sharing(graph, self.path, self.first)


class _Check:
    """Verifies the graphs of a precision, group by group, at the states of the group.

    Args:
        context: context of the build.
        model: model with the prepared network.
        sources: sources of the graphs.
        reporter: shows the progress.
        groups: groups of steps.
        pieces: pieces of other work, after each of which `on_piece` is called.
    """

    def __init__(
        self, context: BuildContext, model: LoadedModel, sources: Sources, reporter: Reporter, groups: Sequence[StepGroup], pieces: int
    ) -> None:
        self._context, self._model, self._reference = context, model, sources.reference
        self._dtype = torch.bfloat16 if context.high_precision == "bf16" else torch.float32
        states, count = load_states(sources.states), max(LEAST_STATES, VERIFIED_STATES // len(groups))
        self._states = [states.at(context.table.timestep[list(group.steps)]).first(count) for group in groups]
        runs = RUNS + (self._dtype != torch.float32) + (not sources.reference)
        self.on_piece = each(reporter, pieces + runs * sum(map(batches, self._states)))

    def __call__(self, path: Path, float32: Path, number: int, layers: Sequence[QuantizedLayer]) -> Verification:
        """Verify the graph of a group; see `ptqd_export.graph.checks.verify.verify`."""
        checked, backend = self._states[number], self._context.backend
        check_graph(self._context.placement, path, layers)
        if number not in self._reference:
            self._reference[number] = full_precision_outputs(self._model, checked, self.on_piece)
        reference = self._reference[number]
        return verify(
            self._model,
            path,
            layers,
            checked,
            reference=reference,
            backend=backend,
            float32=float32,
            dtype=self._dtype,
            on_batch=self.on_piece,
        )
