"""Stage `integer-speed`: measures which layers run slower in integers than in float on this machine, inside the whole network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
from onnx_ir.passes import common

from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.placement import LayerOverrides, rule
from calib.quantizers.rules.precision import Precision
from engines.host.timing import interleaved_medians
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.fit.timing import one_step
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_observations
from ptqd_export.stages.reporter import Reporter, each

SLOWER = "slower.json"

ROUNDS, WARM_UP, TRIES = 11, 2, 2
RUNS = 2 * (ROUNDS + WARM_UP) * TRIES
"""Most runs of the network for a kind of layer."""

LEAST_SPEED = 0.98
"""A kind of layer counts as slower in integers below this speed-up. Medians of equal graphs usually differ by less than 2 %."""

MEASURED = Precision.parse("w8a8")
"""The precision that is measured. All integer precisions run in the same kernels."""


def make_integer_speed(context: BuildContext, prepared: Path, seen: Path, folder: Path, reporter: Reporter) -> None:
    """Write `slower.json`: the speed-up of a step when layers of this kind run in integers, by layer, for the kinds that get slower.

    Layers of one kind have the same operator, weight shape and multiply-accumulates. Each kind in turn computes in float in an otherwise
    quantized network, whose runs alternate with those of the fully quantized network.
    """
    layers = _layers(context, prepared, seen)
    kinds = _kinds(layers)
    slower: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        integer = one_step(context, _write_graph(context, prepared, layers, Path(temporary) / "integer.onnx"))
        for done, names in enumerate(kinds):
            mixed = _write_graph(context, prepared, _with_float(context, layers, names), Path(temporary) / "mixed.onnx")
            speed = _speed(integer, one_step(context, mixed), each(reporter, len(kinds) * RUNS, done * RUNS))
            if speed < LEAST_SPEED:
                slower |= dict.fromkeys(names, speed)
    (folder / SLOWER).write_text(json.dumps(slower, indent=1))


def _speed(integer: Callable[[], object], mixed: Callable[[], object], on_run: Callable[[], None]) -> float:
    """Return the speed-up by integers. Measures again if they seem slower, because load on the machine can have the same effect."""
    runs = {"integer": integer, "mixed": mixed}
    speed = 0.0
    for _ in range(TRIES):
        seconds = interleaved_medians(runs, ROUNDS, WARM_UP, on_run)
        speed = max(speed, seconds["mixed"] / seconds["integer"])
        if speed >= LEAST_SPEED:
            break
    return speed


def load_slower(measured: Path) -> Mapping[str, float]:
    """Read the speed-ups of the slower layers, by layer."""
    slower: dict[str, float] = json.loads((measured / SLOWER).read_text())
    return slower


def _layers(context: BuildContext, prepared: Path, seen: Path) -> list[QuantizedLayer]:
    """Return the quantized layers. Uses the scales that are quickest to find, because scales do not change the time of a kernel."""
    settings = QuantizationSettings("max", "max", context.overrides())
    network = prepared_model(context, prepared).adapter.network
    return Quantizer(network, TracedNetwork.load(prepared).layers, load_observations(seen), context.placement, settings).quantize(MEASURED)


def _kinds(layers: Sequence[QuantizedLayer]) -> list[list[str]]:
    kinds: dict[object, list[str]] = {}
    for layer in layers:
        if layer.input is not None:
            kinds.setdefault((layer.layer.op, layer.layer.shape, layer.layer.macs), []).append(layer.layer.name)
    return list(kinds.values())


def _with_float(context: BuildContext, layers: Sequence[QuantizedLayer], names: Sequence[str]) -> list[QuantizedLayer]:
    """Return the layers, where the named ones keep their integer weights but compute in float."""
    slower = dict.fromkeys(names, 0.0)
    return [
        replace(layer, rule=rule(layer.layer, MEASURED, context.placement, LayerOverrides(slower=slower)), input=None, output=None)
        if layer.layer.name in slower
        else layer
        for layer in layers
    ]


def _write_graph(context: BuildContext, prepared: Path, layers: Sequence[QuantizedLayer], path: Path) -> Path:
    graph = ir.load(prepared / f"{FULL_PRECISION}.onnx")
    ir.passes.Sequential(InsertQuantization(layers, context.placement), common.RemoveUnusedNodesPass())(graph)
    save_graph(graph, path)
    return path
