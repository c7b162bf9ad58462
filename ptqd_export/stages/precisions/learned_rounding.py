"""Stages `reconstruct-<precision>`: learn the weights of one precision, by adapters, by their rounding, or by one after the other."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.rounding.adapted_weight import AdaptedWeight
from calib.rounding.adaround import SoftRounding
from calib.rounding.block_fit import BlockFitSettings
from calib.rounding.learned_block import BlockRecord, load_block
from calib.rounding.module_calls import Inputs
from calib.rounding.reconstruction import CalibrationRows, ReconstructionSettings, block_files, reconstruct
from calib.rounding.soft_weight import Phase
from calib.walk.activation_states import States
from engines.host.files import write_text
from ptqd_export.models.base import LoadedModel
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.nearest_rounding import Sources, quantizers
from ptqd_export.stages.reporter import Reporter

SUMMARY = "reconstruction.json"


def make_learned_rounding(context: BuildContext, precision: Precision, sources: Sources, folder: Path, reporter: Reporter) -> None:
    """Learn the weights of the prepared network with `make_reconstruction`; resumes an interrupted run."""
    model = prepared_model(context, sources.prepared)
    found = quantizers(context, sources, TracedNetwork.load(sources.prepared), model)
    nearest = found.rounded_to_nearest(precision)
    make_reconstruction(context, model, reconstruction_settings(context, precision), nearest, sources.states, folder, reporter)


def make_reconstruction(
    context: BuildContext,
    model: LoadedModel,
    settings: ReconstructionSettings,
    nearest: Sequence[QuantizedLayer],
    states: Path,
    folder: Path,
    reporter: Reporter,
) -> None:
    """Write what every block learned, and `reconstruction.json` with errors, minutes, peak memory, and the layers that stay rounded to
    nearest.

    Args:
        context: context of the build.
        model: model whose network is quantized.
        settings: what is learned, and how.
        nearest: layers of the network at one precision, rounded to nearest.
        states: folder of the stage `states`.
        folder: output folder, which may hold the blocks that an interrupted run finished.
        reporter: shows the progress, optimizer step by optimizer step.
    """
    chosen = load_states(states).first(context.plan.quantization.reconstruction.samples)
    calibration = _calibration_rows(context, model, chosen)
    learned = reconstruct(model.adapter.network, nearest, calibration, settings, folder, reporter.advance)
    records = list(_records(folder, nearest))
    kept = {name for record in records if record.kept for name in record.layers}
    summary = {
        "unit": settings.unit,
        "learns": [phase.name for phase in settings.phases],
        "states": len(chosen.rows),
        "minutes": sum(record.seconds for record in records) / 60,
        "peak_memory_gib": _peak_memory_gib(),
        "blocks": [asdict(record) for record in records],
        "nearest": [layer.layer.name for layer in learned if layer.layer.name not in kept],
    }
    write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def load_reconstruction(folder: Path, nearest: Sequence[QuantizedLayer]) -> list[QuantizedLayer]:
    """Read the layers that `make_reconstruction` learned, in the order of `nearest`. Layers that it did not learn stay as in `nearest`."""
    named = {layer.layer.name: layer for layer in nearest}
    learned = {layer.layer.name: layer for path in block_files(folder) for layer in load_block(path, named)[1]}
    return [learned.get(name, layer) for name, layer in named.items()]


def _records(folder: Path, nearest: Sequence[QuantizedLayer]) -> Iterator[BlockRecord]:
    named = {layer.layer.name: layer for layer in nearest}
    return (load_block(path, named)[0] for path in block_files(folder))


def reconstruction_settings(context: BuildContext, precision: Precision) -> ReconstructionSettings:
    """Return what a precision learns, and how. Blocks are learned together unless the plan says `layer`."""
    plan, calibration = context.plan.quantization, context.plan.calibration
    wanted = plan.reconstruction
    scales = wanted.activation_scales and plan.step_groups == 1  # those of groups come from their own states
    adapters = [] if plan.adapters is None else [Phase("adapters", partial(AdaptedWeight, rank=plan.adapters))]
    rounding = [Phase("rounding", SoftRounding)] if plan.learns_rounding(precision) else []
    return ReconstructionSettings(
        unit="layer" if plan.rounding == "layer" else "block",
        phases=(*adapters, *rounding),
        fit=BlockFitSettings(wanted.iterations, wanted.batch_size, scales, torch.device(calibration.device)),
        dtype=torch.bfloat16 if calibration.dtype == "bfloat16" else torch.float32,
        memory_bytes=int(wanted.memory_gib * 2**30),
    )


def _calibration_rows(context: BuildContext, model: LoadedModel, states: States) -> CalibrationRows:
    """Return the network's inputs for every state; under guidance, for both branches."""
    feeds = model.feeds(states.samples, states.timesteps, states.rows, guided=context.guided)

    def forward(network: nn.Module, batch: Inputs) -> object:
        return model.with_network(network).adapter(*batch)

    inputs = tuple(torch.from_numpy(value) for value in feeds.values())
    return CalibrationRows(forward, inputs, len(states.rows))


def _peak_memory_gib() -> float:
    """Return the peak memory of this process. The system reports it in KiB on Linux and in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
