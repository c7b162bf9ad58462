"""Measures, right after the trace, how fast this machine does what a build consists of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import torch

from calib.quantizers.outputs.input_rows import rows_of
from calib.quantizers.scale_search import activation_scale, weight_scale
from ptqd_export.graph.checks.verify import batch_size
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, graph_path

SECONDS = 1.0
"""Time to measure a network for, unless a single sample takes longer."""

ELSEWHERE = ("torch", "tensorrt", "tensorrt-rtx")
"""What measures statistics but does not verify graphs."""

SEARCHED = 2**15
"""Values of the weight whose scales are searched."""


@dataclass(frozen=True)
class Rates:
    """Seconds for parts of a build, on this machine with its present load.

    Attributes:
        graph_row: one row through the full-precision graph, on what measures the statistics.
        verified_row: the same on the runtime that verifies graphs.
        torch_row: one row through the network in PyTorch, in the plan's batches.
        checked_row: the same in the small batches that graphs are verified in.
        open: open an engine.
        rewrite: read a graph, and write it again.
        activation: search the scale of a tensor's activations.
        weight: search the scales of a weight, per value.
    """

    graph_row: float
    verified_row: float
    torch_row: float
    checked_row: float
    open: float
    rewrite: float
    activation: float
    weight: float


def measure_rates(context: BuildContext, traced: Path) -> Rates:
    """Measure the rates with the graph in the folder of the stage `trace`."""
    graph = graph_path({FULL_PRECISION: traced}, FULL_PRECISION)
    begin = time.perf_counter()
    network = context.denoiser(graph, context.plan.calibration.batch_size)
    opened = time.perf_counter() - begin
    noise, timestep = context.samples.noise, float(context.table.timestep[0])

    def run(samples: int) -> object:
        numbers = np.arange(samples, dtype=np.int64)
        return network(noise.start(numbers), timestep, np.zeros_like(numbers))

    placed = context.calibration_device.place(context.model)

    def run_torch(samples: int) -> object:
        with torch.no_grad():
            return placed.adapter(*context.calibration_device.place_inputs(context.model.example_inputs(samples)))

    branches, most = 2 if context.guided else 1, context.plan.calibration.batch_size
    graph_row = _per_sample(run, most) / branches
    return Rates(
        graph_row=graph_row,
        verified_row=_verified_row(context, graph) if context.measured_with.runtime in ELSEWHERE else graph_row,
        torch_row=_per_sample(run_torch, most),
        checked_row=_per_sample(run_torch, batch_size(context.model.sample_shape)),
        open=opened,
        rewrite=_seconds(lambda: _rewrite(graph)),
        activation=_seconds(_search_activation),
        weight=_seconds(_search_weight) / SEARCHED,
    )


def _verified_row(context: BuildContext, graph: Path) -> float:
    most = batch_size(context.model.sample_shape)
    network = context.network([(math.inf, graph)], most, context.backend)
    x, timestep = context.samples.noise.start(np.arange(most, dtype=np.int64)), float(context.table.timestep[0])
    branches = 2 if context.guided else 1
    return _per_sample(lambda samples: network(x[:samples], timestep, np.zeros(samples, dtype=np.int64)), most) / branches


def _per_sample(run: Callable[[int], object], most: int) -> float:
    """Return the seconds per sample in batches of `most` samples, or of as many as fit the time."""
    run(1)
    one = _seconds(lambda: run(1))
    batch = max(1, min(most, int(SECONDS / one)))
    return one if batch == 1 else _seconds(lambda: run(batch)) / batch


def _rewrite(graph: Path) -> None:
    with TemporaryDirectory() as folder:
        save_graph(ir.load(graph), Path(folder) / graph.name)


def _search_activation() -> None:
    activation_scale(torch.linspace(-1, 2, 2**16), -1.0, 2.0, bits=8, signed=False, symmetric=False)


def _search_weight() -> None:
    weight = torch.linspace(-1, 1, SEARCHED).reshape(64, -1)
    weight_scale(weight, 8, rows=torch.linspace(-1, 1, rows_of(weight[0].numel()))[:, None, None].expand(-1, 1, weight[0].numel()))


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
