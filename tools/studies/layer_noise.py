"""Measure how much each layer contributes to a precision's noise: each layer is quantized alone, on states of full-precision chains.

    python -m tools.studies.layer_noise tools/digits/learned.json --precision w4a8

The layers run in the oracle's arithmetic. The plan must have been built, because its stages are read. A layer with much of the noise and
little of the work is a candidate for `keep_8bit_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.rules.precision import Precision
from engines.bundle.bundle import UNFINISHED_BUILD as STAGES
from engines.errors import UsageError
from ptqd_export.plan import load_plan
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states, network_inputs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.nearest_rounding import Sources, quantizers

HEADER = ("layer", "share of the noise", "share of the multiply-accumulates")


@dataclass(frozen=True)
class LayerNoise:
    """What a layer contributes by itself; both shares are relative to the sum over all listed layers.

    Attributes:
        name: name of the layer.
        noise: share of the squared error of the network's output, averaged over equally weighted states.
        macs: share of the multiply-accumulates.
    """

    name: str
    noise: float
    macs: float


def layer_noise(context: BuildContext, sources: Sources, precision: Precision, states: int) -> list[LayerNoise]:
    """Return the quantized layers in descending order of noise, measured on at most `states` states."""
    network, model = TracedNetwork.load(sources.prepared), prepared_model(context, sources.prepared)
    layers = quantizers(context, sources, network, model).rounded_to_nearest(precision)
    with torch.no_grad():
        batches = [*network_inputs(context, load_states(sources.states).first(states))]
        exact = [model.adapter(*batch) for batch in batches]
        errors = []
        for layer in layers:
            adapter = model.with_network(fake_quantized(model.adapter.network, [layer])).adapter
            errors.append(_errors([adapter(*batch) for batch in batches], exact))
    shares = (np.array(errors) / np.sum(errors, axis=0)).mean(axis=1)
    macs = {layer.name: layer.macs for layer in network.layers}
    work = sum(macs[layer.layer.name] for layer in layers)
    found = [LayerNoise(layer.layer.name, float(share), macs[layer.layer.name] / work) for layer, share in zip(layers, shares, strict=True)]
    return sorted(found, key=lambda one: -one.noise)


def _errors(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Squared error of the output for every state."""
    return torch.cat([(out - e).square().flatten(1).sum(1) for out, e in zip(outputs, exact, strict=True)]).tolist()


def stage(output: Path, name: str) -> Path | None:
    """Return the folder of a stage of the bundle's build, or None."""
    return next((output / STAGES).glob(f"{name}-*"), None)


def built_sources(output: Path) -> Sources:
    """Return the stages that the bundle's graphs were made from.

    Raises:
        UsageError: the plan has not been built, or its stages were removed.
    """
    prepared, states, seen = stage(output, "prepare") or stage(output, "trace"), stage(output, "states"), stage(output, "observe")
    if prepared is None or states is None or seen is None:
        raise UsageError("The plan has not been built.", found=f"no stages in {output}", mend="run ptqd-export build first")
    return Sources(prepared, states, seen)


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--precision", default="w4a8", show_default=True)
@click.option("--states", default=100, show_default=True, help="Number of states on which the layers are compared.")
@click.option("--top", default=12, show_default=True, help="Number of layers to print.")
def main(plan: Path, precision: str, states: int, top: int) -> None:
    plan_file = load_plan(plan)
    found = layer_noise(BuildContext(plan_file), built_sources(plan_file.output_path), Precision.parse(precision), states)
    for line in (HEADER, ("---", "---:", "---:"), *((one.name, f"{one.noise:.1%}", f"{one.macs:.1%}") for one in found[:top])):
        click.echo(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
