"""What each stage of a build costs: rows through the network, and everything else, at the rates of this machine."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from calib.quantizers.group_choice import spans
from calib.quantizers.rules.precision import Precision
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.estimate.network_rows import network_rows
from ptqd_export.stages.estimate.rates import Rates
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.integer_speed import RUNS, TRIES

FAKE_QUANTIZED = 3.0
"""Time of the quantized oracle, mean of float32 and float64, relative to the network in PyTorch. Measured: 2.5 to 4."""

OBSERVED = 1.5
"""Time of the network in PyTorch while its activations are observed, relative to the network alone."""

LEARNED = 5.0
"""Time of an optimizer step through a block, relative to the block alone."""

EXACT = 1.5
"""Time of a graph in the runtime's exact mode, and as it runs, in the mean, relative to full precision."""

REPORT = 1.5
"""Seconds to draw the plots of a report."""

STAGE = 0.4
"""Seconds that every stage takes to write its files to the disk and to collect garbage."""

TEXT = 0.3
"""Time to trace a text encoder relative to the network. Measured on CLIP's."""


class StageCosts:
    """Estimates the seconds of stages.

    Args:
        context: context of the build.
        traced: folder of the stage `trace`.
        traced_in: seconds that it took to trace the network.
        rates: rates of this machine.
    """

    def __init__(self, context: BuildContext, traced: Path, traced_in: float, rates: Rates) -> None:
        self._context = context
        self._network = TracedNetwork.load(traced)
        self._traced_in = traced_in
        self._rates = rates

    def seconds(self, stage: str) -> float:
        """Return the estimated seconds of a stage."""
        rows = network_rows(self._context, stage)
        return STAGE + self._graph_seconds(stage, rows.graph) + self._torch_seconds(stage, rows.torch) + self._more(stage)

    def _graph_seconds(self, stage: str, rows: int) -> float:
        if stage.startswith(("quantize-", "convert-")):
            return EXACT * rows * self._rates.verified_row
        on_measuring = stage != "times" or self._context.runs_engines
        return rows * (self._rates.graph_row if on_measuring else self._rates.verified_row)

    def _torch_seconds(self, stage: str, rows: int) -> float:
        if stage.startswith(("quantize-", "convert-", "groups-")):
            return FAKE_QUANTIZED * rows * self._rates.checked_row
        return (OBSERVED if stage.startswith("observe") else 1.0) * rows * self._rates.torch_row

    def _more(self, stage: str) -> float:
        """Return the seconds that a stage takes besides the rows that are counted."""
        rates, networks = self._rates, 1 + len(self._context.engine_precisions)
        kind, _, precision = stage.partition("-")
        match kind:
            case "decoder":
                return self._traced_in * _modules(self._context.model.decoder) / _modules(self._context.model.adapter)
            case "encoder":
                return self._traced_in * _modules(self._context.model.encoder) / _modules(self._context.model.adapter)
            case "preview":
                preview = self._context.model.preview
                return 0.0 if preview is None else self._traced_in * _modules(preview.module) / _modules(self._context.model.adapter)
            case "control":
                part = self._context.model.control_part
                return 0.0 if part is None else self._traced_in * _modules(part.module) / _modules(self._context.model.adapter)
            case "text":
                return self._traced_in * TEXT * self._encoders
            case "noise":
                return self._search(precision, 1)
            case "groups":
                return self._search(precision, len(spans(self._groups)))
            case "quantize":
                return self._search(precision, self._ranges) + 3 * rates.rewrite + 3 * rates.open
            case "convert":
                return 3 * rates.rewrite + 2 * rates.open
            case "prepare":
                return 4 * rates.rewrite + 2 * rates.open
            case "reconstruct":
                return self._learning(precision)
            case "integer":
                return self._integer_speed()
            case "states":
                return rates.open
            case "statistics" | "schedule" | "probes" | "aging" | "choice" | "check" | "pictures" | "times":
                return networks * rates.open
            case "bundle":
                return REPORT + networks * (3 * rates.rewrite + 2 * rates.open)
            case "optimize":
                return 2 * networks * rates.open
        return 0.0

    @property
    def _groups(self) -> int:
        return len(self._context.groups(range(self._context.table.steps)))

    @property
    def _ranges(self) -> int:
        """How many ranges each activation gets: one for all steps, and one for each group; none if they are known since their choice."""
        if self._context.chooses_groups:
            return 0
        return 1 if self._groups == 1 else 1 + self._groups

    def _search(self, precision: str, ranges: int) -> float:
        """Return the seconds that the search for scales takes. Precisions with the same activation bits share the activations' scales."""
        settings, layers = self._context.plan.quantization, self._network.layers
        bits = {one.name: one.activation_bits for one in self._context.quantized_precisions}
        shared = next(name for name in bits if bits[name] == bits[precision]) != precision
        tensors = 0 if shared or settings.activation_scale == "max" else ranges * len({layer.source for layer in layers})
        values = 0 if settings.weight_scale == "max" else sum(layer.weights for layer in layers)
        return tensors * self._rates.activation + values * self._rates.weight

    def _learning(self, precision: str) -> float:
        """Return the seconds that it takes to learn the weights of a precision: blocks have about three layers."""
        settings, guided = self._context.plan.quantization, self._context.guided
        inner = sum(layer.role == "inner" for layer in self._network.layers)
        blocks = inner if settings.rounding == "layer" else math.ceil(inner / 3)
        rows = settings.reconstruction.samples * (2 if guided else 1)
        phases = (settings.adapters is not None) + settings.learns_rounding(Precision.parse(precision))
        steps = phases * settings.reconstruction.iterations * settings.reconstruction.batch_size
        return self._rates.torch_row * (blocks * rows + LEARNED * steps)

    def _integer_speed(self) -> float:
        kinds = {(layer.op, layer.shape, layer.macs) for layer in self._network.layers if layer.role == "inner"}
        run = self._context.plan.target.benchmark_batch * self._rates.graph_row * (2 if self._context.guided else 1)
        return len(kinds) * (RUNS / TRIES * run + self._rates.rewrite + self._rates.open)

    @property
    def _encoders(self) -> int:
        prompts = self._context.model.prompts
        return 0 if prompts is None else len(prompts.folders)


def _modules(module: nn.Module | None) -> int:
    return 0 if module is None else sum(1 for _ in module.modules())
