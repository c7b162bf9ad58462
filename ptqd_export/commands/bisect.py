"""`ptqd-export bisect`: find the first layer of an engine whose output departs from a reference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.apps.chosen_rows import chosen_rows
from engines.apps.compare.agreement import Agreement
from engines.apps.compare.compare_result import Decibels, finite
from engines.apps.compare.visits import Visit, visits
from engines.backends.choice import Runtime, engine_settings, runtime_name
from engines.backends.onnxruntime import onnxruntime_backend as onnxruntime
from engines.backends.onnxruntime.onnxruntime_backend import mode_of
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.backends.openvino import openvino_backend as openvino
from engines.backends.tensorrt import layer_run
from engines.backends.tensorrt.tensorrt_backend import EngineSettings
from engines.bundle.bundle import DEFAULT, Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.errors import UnknownNameError, UsageError
from engines.networks.engine_bank import EngineBank
from engines.networks.engine_denoiser import EngineDenoiser
from engines.terminal.progress import progress
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.layer_outputs import SHOWN, ShowLayerOutputs
from ptqd_export.graph.stand_in_backend import runnable
from ptqd_export.measuring.bundle_backend import bundle_measuring_backend
from ptqd_export.plan import FULL_PRECISION

Against = Literal["oracle", "fp32"]
RunGraph = Callable[[Path, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs the graph in a file and returns all of its outputs by name."""

MIN_SNR_DB: Mapping[Against, float] = {"oracle": 25.0, "fp32": 10.0}


@dataclass(frozen=True)
class BisectRequest:
    """What to examine.

    Attributes:
        bundle: folder of the bundle.
        precision: precision of the engine.
        step: schedule step whose states the layers get.
        against: the same graph as written, which shows faults of the runtime, or full precision, which shows badly quantized layers.
        min_snr_db: a layer with a lower SNR departs; None takes `MIN_SNR_DB`.
        schedule: name of the schedule.
        num: number of samples, all in one batch.
        seed: seed of the samples' noise.
        runtime: runtime of the engine; the reference runs as written on ONNX Runtime and the CPU, whatever the engine runs on.
    """

    bundle: Path
    precision: str
    step: int = 0
    against: Against = "oracle"
    min_snr_db: float | None = None
    schedule: str = DEFAULT
    num: int = 4
    seed: int = 0
    runtime: Runtime = "target"


@dataclass(frozen=True)
class LayerFigures:
    """How the output of one layer departs from the reference.

    Attributes:
        layer: name of the module; the last layer is the network's output.
        snr_db: power of the reference's output over the power of the difference, in dB; None if the outputs are the same.
        max_absolute_error: largest absolute difference.
    """

    layer: str
    snr_db: Decibels
    max_absolute_error: float


@dataclass(frozen=True)
class BisectResult:
    """Figures of every layer, in the order of the graph.

    Attributes:
        precision: precision of the engine.
        against: see `BisectRequest`.
        step: see `BisectRequest`.
        timestep: timestep that the network was given.
        num: number of samples.
        seed: seed of the samples' noise.
        min_snr_db: a layer with a lower SNR departs.
        first: the first layer that departs, or None.
        layers: layers that both graphs have.
        only_here: layers that the reference does not have.
    """

    precision: str
    against: Against
    step: int
    timestep: float
    num: int
    seed: int
    min_snr_db: float
    first: str | None
    layers: tuple[LayerFigures, ...]
    only_here: tuple[str, ...]
    schema_version: Literal[1] = 1


def bisect_bundle(request: BisectRequest, run: RunGraph | None = None) -> BisectResult:
    """Compare an engine with a reference, layer by layer, on states of the full-precision chain.

    Args:
        request: what to examine.
        run: runs the engine; None takes the request's runtime.

    Raises:
        UsageError: the request does not fit the bundle.
        MissingBackendError: the runtime or its device is missing.
        PtqdError: the bundle is damaged, or a runtime refuses a graph.
    """
    bundle = Bundle.open(request.bundle)
    schedule = bundle.schedule(request.schedule)
    _check(request, bundle, schedule)
    run = run or _runtime(request, bundle)
    bank = EngineBank(bundle, schedule.sampler.guidance, batch=request.num, backend=bundle_measuring_backend(bundle), whole=True)
    with progress("walking", request.step + 1) as advance:
        visit = _visit(request, bundle, schedule, bank[FULL_PRECISION], advance)
    feeds = bank[FULL_PRECISION].feeds(visit.x, visit.timestep, visit.rows)
    bank.open([request.precision])  # verifies its files
    graphs = {name: bundle.verified_graph(name, visit.timestep) for name in (request.precision, FULL_PRECISION)}
    reference = graphs[request.precision if request.against == "oracle" else FULL_PRECISION]
    layers, only_here = compare_layers(graphs[request.precision], run, reference, _as_written, feeds)
    least = MIN_SNR_DB[request.against] if request.min_snr_db is None else request.min_snr_db
    return BisectResult(
        precision=request.precision,
        against=request.against,
        step=request.step,
        timestep=visit.timestep,
        num=request.num,
        seed=request.seed,
        min_snr_db=least,
        first=next((layer.layer for layer in layers if layer.snr_db is not None and layer.snr_db < least), None),
        layers=layers,
        only_here=only_here,
    )


def _runtime(request: BisectRequest, bundle: Bundle) -> RunGraph:
    """Return the requested runtime, never a substitute.

    Raises:
        UsageError: the runtime runs the graphs as written on the CPU, so that nothing can depart from the same graph as written.
    """
    name, target = runtime_name(bundle, request.runtime), bundle.manifest.target.name
    if name == "tensorrt" or name == "tensorrt-rtx":
        return partial(_on_tensorrt, settings=engine_settings(bundle, name))
    if name == "openvino":
        return openvino.run_outputs
    provider: Provider = "CUDA" if name == "onnxruntime-cuda" else "CPU"
    mode = mode_of(target, provider)
    if (mode, provider, request.against) == ("exact", "CPU", "oracle"):
        raise UsageError(
            "ONNX Runtime runs this bundle's graphs as they are written: there is no other engine to examine.",
            found=f"a bundle for {target} on ONNX Runtime, against the oracle",
            expected=f"--runtime {target}, or --against fp32",
        )
    return partial(onnxruntime.run_outputs, mode=mode, provider=provider)


def _as_written(graph: Path, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Run the reference on the CPU, node by node."""
    with tempfile.TemporaryDirectory() as folder:
        return onnxruntime.run_outputs(runnable(graph, Path(folder)), feeds, mode="exact")


def _on_tensorrt(graph: Path, feeds: Mapping[str, NDArray[Any]], settings: EngineSettings) -> Mapping[str, NDArray[Any]]:
    check_tensorrt_graph(graph)
    return layer_run.run_outputs(graph, feeds, settings)


def compare_layers(
    graph: Path, run: RunGraph, reference: Path, run_reference: RunGraph, feeds: Mapping[str, NDArray[Any]]
) -> tuple[tuple[LayerFigures, ...], tuple[str, ...]]:
    """Return the figures of every layer in the order of `graph`, the network's output last, and the layers that `reference` lacks."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "engine.onnx", Path(folder) / "reference.onnx"]
        (out, *names), _ = (_show_layers(source, path) for source, path in zip((graph, reference), paths, strict=True))
        with progress("layers", len(paths)) as advance:
            outputs = []
            for path, runner in zip(paths, (run, run_reference), strict=True):
                outputs.append(runner(path, feeds))
                advance()
        found, expected = outputs
    layers = tuple(_figures(name, expected[name], found[name]) for name in (*names, out) if name in expected)
    return layers, tuple(name.removeprefix(SHOWN) for name in names if name not in expected)


def _show_layers(graph: Path, path: Path) -> list[str]:
    """Write a graph that outputs its layers; return the names of its outputs, the network's own first."""
    model = ir.load(graph)
    ShowLayerOutputs()(model)
    save_graph(model, path)
    return [str(output.name) for output in model.graph.outputs]


def _figures(name: str, expected: NDArray[Any], found: NDArray[Any]) -> LayerFigures:
    agreement = Agreement()
    agreement.add(expected.astype(np.float32), found.astype(np.float32))
    return LayerFigures(name.removeprefix(SHOWN), finite(agreement.snr_db), agreement.max_absolute_error)


def _check(request: BisectRequest, bundle: Bundle, schedule: Schedule) -> None:
    known = [name for name in bundle.manifest.precisions if name != FULL_PRECISION]
    if request.precision not in known:
        raise UnknownNameError("The bundle has no such engine.", found=request.precision, known=known)
    if request.step >= len(schedule.steps):
        raise UsageError("The schedule has fewer steps.", found=f"--step {request.step}", expected=f"0 to {len(schedule.steps) - 1}")


def _visit(request: BisectRequest, bundle: Bundle, schedule: Schedule, network: EngineDenoiser, on_step: Callable[[], None]) -> Visit:
    """Return the network's inputs at the step."""
    model = bundle.manifest.model
    noise, samples = NoiseSource(request.seed, model.sample_shape), np.arange(request.num, dtype=np.int64)
    rows = chosen_rows(None, samples, noise, model.conditioning)
    chain = Chain(schedule, {FULL_PRECISION: network}, FULL_PRECISION, corrected=False)
    return next(visits(chain, [request.step], noise, np.zeros_like(samples) if rows is None else rows, request.num, on_step))
