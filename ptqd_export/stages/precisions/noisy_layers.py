"""Stages `noise-<precision>`: measure how much noise each layer causes, and choose the layers that compute in float."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from calib.quantizers.layer_noise import DIRECTIONS, layer_noise, within_share
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states, network_inputs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_groups
from ptqd_export.stages.precisions.nearest_rounding import Sources, quantizers
from ptqd_export.stages.reporter import Reporter, each

NOISY = "noise.json"

STATES = 16
"""States, one in a batch, that the noise is averaged over."""

RUNS = STATES * (5 + 2 * DIRECTIONS)
"""Runs of the network that the stage is worth: full precision, the quantized layers twice (a quantizer costs a run), and two for each
backward pass."""

LEAST_DB = -100.0
"""Stands for no noise at all."""


def make_layer_noise(context: BuildContext, precision: Precision, sources: Sources, folder: Path, reporter: Reporter) -> None:
    """Write `noise.json`: the noise in dB of the output's power that each quantized layer causes alone, rounded to nearest with one range
    for all steps of the precision, and the names of the layers that the plan's share goes to.
    """
    pieces = len(TracedNetwork.load(sources.prepared).layers) + STATES
    layers, noise = measured_noise(context, precision, sources, each(reporter, pieces))
    easy = {layer.layer.name for layer in layers if (layer.rule.weight_bits, layer.rule.activation_bits) == (8, None)}
    cost = {layer.layer.name: float(layer.layer.macs) for layer in layers}
    chosen = within_share({name: 0.0 if name in easy else one for name, one in noise.items()}, cost, context.plan.quantization.float_share)
    decibels = {name: 10 * math.log10(one) if one > 0 else LEAST_DB for name, one in noise.items()}
    (folder / NOISY).write_text(json.dumps({"noise_db": decibels, "float": chosen}, indent=1))


def measured_noise(
    context: BuildContext, precision: Precision, sources: Sources, on_piece: Callable[[], None] = lambda: None
) -> tuple[list[QuantizedLayer], dict[str, float]]:
    """Return the precision's quantized layers, and the noise that each causes alone, relative to the power of the network's output.

    Calls `on_piece` after each layer and each state.
    """
    network, model = TracedNetwork.load(sources.prepared), prepared_model(context, sources.prepared)
    states = load_states(sources.states).at(context.table.timestep[context.steps_of(precision)]).first(STATES)
    everywhere = replace(sources, chosen=(tuple(range(len(load_groups(sources.seen)))),))
    layers = quantizers(context, everywhere, network, model).rounded_to_nearest(precision, on_piece)
    placed = context.calibration_device.place(model)
    inputs = network_inputs(context, states, on_piece, size=1)
    noise = layer_noise(placed.adapter.network, lambda network, batch: placed.with_network(network).adapter(*batch), layers, inputs)
    return layers, noise


def load_noisy(folder: Path) -> Mapping[str, float]:
    """Read the layers that compute in float, with their noise in dB, the noisiest first."""
    record = json.loads((folder / NOISY).read_text())
    return {name: record["noise_db"][name] for name in record["float"]}
