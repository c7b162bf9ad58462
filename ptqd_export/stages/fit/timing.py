"""Measures the time of a step with each engine on this machine. The times are kept apart from the portable bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from engines.backends.onnxruntime.onnxruntime_session import saturates
from engines.host.files import write_text
from engines.host.machine import cores, processor
from engines.host.timing import interleaved_medians
from ptqd_export.records.times_file import times_file
from ptqd_export.stages.build_context import BuildContext, graph_path
from ptqd_export.stages.reporter import Reporter, each

ROUNDS, WARM_UP = 15, 3


def time_engines(context: BuildContext, graphs: Mapping[str, Path], reporter: Reporter) -> dict[str, float]:
    """Return the median milliseconds per step (guidance included) by precision, and of steps that reuse features, by network at a cut."""
    runs = {name: one_step(context, graph_path(graphs, name)) for name in graphs}
    runs |= {name: _reusing_step(context, graphs, name) for name in context.cut_networks}
    on_run = each(reporter, len(runs) * (WARM_UP + ROUNDS))
    return {name: 1000 * seconds for name, seconds in interleaved_medians(runs, ROUNDS, WARM_UP, on_run).items()}


def one_step(context: BuildContext, graph: Path) -> Callable[[], object]:
    """Return a call that runs a graph's engine on one batch of `benchmark_batch` samples."""
    batch = context.plan.target.benchmark_batch
    samples = np.arange(batch, dtype=np.int64)
    x = context.samples.noise.start(samples)
    return partial(context.timed_denoiser(graph, batch), x, float(context.table.timestep[0]), np.zeros_like(samples))


def _reusing_step(context: BuildContext, graphs: Mapping[str, Path], name: str) -> Callable[[], object]:
    """Return a call that runs the engine of a network at a cut with features to reuse; see `one_step`."""
    batch = context.plan.target.benchmark_batch
    samples = np.arange(batch, dtype=np.int64)
    network, x, timestep = context.network_at(graphs, name, batch), context.samples.noise.start(samples), float(context.table.timestep[0])
    _, kept = network.keep(x, timestep, np.zeros_like(samples))
    return partial(network.reuse, x, timestep, np.zeros_like(samples), kept)


def write_times(context: BuildContext, output: Path, times: Mapping[str, float] | None) -> None:
    """Write `local/<machine>/times.json`. Without times, removes those of an earlier build."""
    path = times_file(output)
    if times is None:
        path.unlink(missing_ok=True)
        return
    target = context.plan.target
    about = {
        "processor": processor(),
        "cores": cores(),
        "provider": target.provider,
        "batch": target.benchmark_batch,
        "guided": context.guided,
        "sums_in_16_bits": target.provider == "CPU" and saturates({}),
    }
    write_text(path, json.dumps({**about, "milliseconds_a_step": times}, indent=1) + "\n")
