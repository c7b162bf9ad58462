"""Stages `quantize-<precision>`: write the graph of one precision, and verify it against its oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common

from calib.quantizers.attention.quantized_attention import QuantizedAttention
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.quantizers.scale_type import with_scales_in
from calib.quantizers.step_groups import StepGroup, groups_of
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.checks.verify import RUNS, Verification, batches, full_precision_outputs, verified_states, verify
from ptqd_export.graph.graph_files import save_graph, save_sharing, save_with_data
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.tensors.mapped_weights import map_tensors
from ptqd_export.stages.build_context import FULL_PRECISION, GROUPS, BuildContext, group_path
from ptqd_export.stages.network.preparation import prepared_model, rotated_blocks
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.layer_records import add_groups, add_learned, add_rotations, precision_record
from ptqd_export.stages.precisions.learned_rounding import SUMMARY, load_reconstruction
from ptqd_export.stages.precisions.nearest_rounding import Sources, quantizers
from ptqd_export.stages.precisions.quantized_attention_sites import attention_sites
from ptqd_export.stages.reporter import Reporter, each


def make_quantized_graph(
    context: BuildContext, precision: Precision, sources: Sources, learned: Path | None, folder: Path, reporter: Reporter
) -> None:
    """Write `<precision>.onnx` and `precision.json` (layers, bit operations, results of verification, cost of learning). With
    several groups of steps, also write `groups.json` and the graphs of the other groups, which read their weights from the first group's
    file.

    `learned` is the folder of the stage that learned the weights, or None if they are rounded to nearest.
    """
    network, model = TracedNetwork.load(sources.prepared), prepared_model(context, sources.prepared)
    groups, path = groups_of(precision, sources.groups()), folder / f"{precision.name}.onnx"
    check = _Check(context, model, sources, reporter, groups, len(network.layers))
    found = quantizers(context, sources, network, model)
    nearest = found.rounded_to_nearest(precision, check.on_piece)
    learned_or_nearest = nearest if learned is None else load_reconstruction(learned, nearest)
    map_tensors(value for layer in learned_or_nearest for value in layer.large_tensors)
    layers = [with_scales_in(context.high_precision, of_group) for of_group in found.by_group(precision, learned_or_nearest)]
    sites = attention_sites(context, precision, sources)
    attention = [sites.quantized(quantizer) for quantizer in found.groups[: len(groups)]]
    verifications = []
    for number, of_group in enumerate(zip(layers, attention, strict=True)):
        graph, float32 = _write_graphs(context, sources.prepared, *of_group, path, number, shared=len(groups) > 1)
        verifications.append(check(graph, float32, groups[number], *of_group))
    took = None if learned is None else json.loads((learned / SUMMARY).read_text())
    worst = min(verifications, key=lambda one: one.exact_match - one.rounding)
    bounds = [group.below for group in groups[1:]]
    record = {
        "reconstruction": took,
        "verification": asdict(worst),
        **precision_record(context, precision, network, layers[0], sources.overrides(context), sites.quantized_macs),
    }
    if sites.sites:
        record["attention"] = [one.model_dump() for one in sites.records(attention)]
    add_groups(record["layers"], bounds, layers[1:])
    add_rotations(record["layers"], rotated_blocks(sources.prepared))
    if took is not None:
        add_learned(record["layers"], took)
    (folder / "precision.json").write_text(json.dumps(record, indent=1))
    if bounds:
        (folder / GROUPS).write_text(json.dumps(bounds))


def _write_graphs(
    context: BuildContext,
    prepared: Path,
    layers: Sequence[QuantizedLayer],
    attention: Sequence[QuantizedAttention],
    path: Path,
    number: int,
    *,
    shared: bool,
) -> tuple[Path, Path]:
    """Write the quantized graph of a group of steps in the plan's high precision. Returns its path, and that of the same graph in float32.

    Args:
        context: context of the build.
        prepared: folder of the full-precision graph.
        layers, attention: quantized layers and attention of the group.
        path: path of the first group's graph.
        number: number of the group.
        shared: whether there are several groups, which share the first one's file of weights.
    """
    graph = ir.load(prepared / f"{FULL_PRECISION}.onnx")
    ir.passes.Sequential(InsertQuantization(layers, context.placement, attention), common.RemoveUnusedNodesPass())(graph)
    if context.high_precision == FULL_PRECISION:
        written = float32 = _save(graph, path, number, shared=shared)
    else:
        float32 = _save(graph, path.with_name(f"{path.stem}-{FULL_PRECISION}.onnx"), number, shared=shared)
        ir.passes.Sequential(ToHalfPrecision(context.high_precision), common.RemoveUnusedNodesPass())(graph)
        written = _save(graph, path, number, shared=shared)
    return written, float32


def _save(graph: ir.Model, first: Path, number: int, *, shared: bool) -> Path:
    path = group_path(first, number)
    if not shared:
        save_graph(graph, path)
    elif number == 0:
        save_with_data(graph, path)
    else:
        save_sharing(graph, path, first)
    return path


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
        self._device = context.plan.calibration.device
        self._dtype = torch.bfloat16 if context.high_precision == "bf16" else torch.float32
        states, count = load_states(sources.states), verified_states(len(groups), context.plan.calibration.verify_states)
        self._states = {group: states.at(context.table.timestep[list(group.steps)]).first(count) for group in groups}
        runs = {group: RUNS + (self._dtype != torch.float32) + (group.steps not in sources.reference) for group in groups}
        self.on_piece = each(reporter, pieces + sum(runs[group] * batches(checked) for group, checked in self._states.items()))

    def __call__(
        self, path: Path, float32: Path, group: StepGroup, layers: Sequence[QuantizedLayer], attention: Sequence[QuantizedAttention]
    ) -> Verification:
        """Verify the graph of a group; see `ptqd_export.graph.checks.verify.verify`."""
        checked = self._states[group]
        check_graph(self._context.placement, path, layers)
        if group.steps not in self._reference:
            self._reference[group.steps] = full_precision_outputs(self._model, checked, self.on_piece, self._device)
        return verify(
            self._model,
            path,
            layers,
            checked,
            reference=self._reference[group.steps],
            backend=self._context.backend,
            float32=float32,
            dtype=self._dtype,
            device=self._device,
            attention=attention,
            on_batch=self.on_piece,
        )
