"""Stage `observe`, or `observe-<precision>`: observes the activations of every layer at real states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from calib.quantizers.attention.observed_attention import AttentionObserver, AttentionSite
from calib.quantizers.observers import ObservedActivations, observe_activations
from calib.quantizers.step_groups import StepGroup
from engines.errors import UsageError
from ptqd_export.graph.reading.attention_products import find_attention
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import input_batches, load_states, network_inputs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.reporter import Reporter, each

STEP_GROUPS = "step_groups.json"
ATTENTION = "attention.json"


def make_observations(
    context: BuildContext, prepared: Path, states: Path, groups: Sequence[StepGroup], folder: Path, reporter: Reporter
) -> None:
    """Write `observed_<number>.npz` for every group of steps: the range and a sample of the values of every layer's input and output, and
    rows of its input, at the states of the group. Write the groups themselves to `step_groups.json`.

    If the plan quantizes attention, also observe the inputs of its products, and write where they are to `attention.json`.

    Raises:
        UsageError: PyTorch does not compute the attention of the graph as one call each.
    """
    layers = TracedNetwork.load(prepared).layers
    inputs, outputs = sorted({layer.source for layer in layers}), [layer.name for layer in layers]
    model = context.calibration_device.place(prepared_model(context, prepared))
    chosen = [load_states(states).at(context.table.timestep[list(group.steps)]) for group in groups]
    calls = [input_batches(context, states_of_group) for states_of_group in chosen]
    on_batch = each(reporter, sum(calls))
    for number, states_of_group in enumerate(chosen):
        attention = AttentionObserver(model.adapter.network, calls[number])
        watched = attention.run if context.plan.quantization.attention != "float" else nullcontext
        with observe_activations(model.adapter.network, inputs, outputs, calls[number]) as seen, torch.no_grad():
            for batch in network_inputs(context, states_of_group, on_batch):
                with watched():
                    model.adapter(*batch)
        if number == 0:
            _write_sites(context, prepared, attention.sites, folder)
        seen |= attention.seen
        _save(seen, folder, number)
    (folder / STEP_GROUPS).write_text(json.dumps([asdict(group) for group in groups]))


def gather_observations(own: Path, sizes: Sequence[Path], folder: Path, _reporter: Reporter) -> None:
    """Write the observations of all sizes together, in equal shares and as many values as one size has; the rest is a size's own.

    Args:
        own: folder of the observations at the size.
        sizes: folders of the observations at every size.
        folder: folder to write to.
    """
    for number in range(len(load_groups(own))):
        parts = [load_observations(one, number) for one in sizes]
        seen = {name: ObservedActivations.together(part[name].thinned(len(parts)) for part in parts) for name in parts[0]}
        _save(seen, folder, number)
    for file in (STEP_GROUPS, ATTENTION):
        if (own / file).exists():
            shutil.copyfile(own / file, folder / file)


def _write_sites(context: BuildContext, prepared: Path, sites: Sequence[AttentionSite], folder: Path) -> None:
    if context.plan.quantization.attention == "float":
        return
    products = find_attention(ir.load(prepared / f"{FULL_PRECISION}.onnx").graph)
    if len(products) != len(sites):
        raise UsageError(
            "The attention of this network cannot be quantized.",
            found=f"{len(products)} times the products of attention in the graph, and {len(sites)} calls of scaled_dot_product_attention",
            expected="a network in PyTorch that calls torch.nn.functional.scaled_dot_product_attention for all its attention",
            mend='set quantization.attention to "float"',
        )
    (folder / ATTENTION).write_text(json.dumps([asdict(site) for site in sites], indent=1))


def load_attention(folder: Path) -> list[AttentionSite]:
    """Read the attention of the network in the order of its calls; empty if it was not observed."""
    file = folder / ATTENTION
    return [AttentionSite(**site) for site in json.loads(file.read_text())] if file.exists() else []


def load_observations(folder: Path, number: int = 0) -> dict[str, ObservedActivations]:
    """Read the observations of one group of steps, by `<layer>.input` and `<layer>.output`, and those of attention, by `<name>.query`,
    `<name>.key` and `<name>.value`.
    """
    with np.load(_file(folder, number)) as archive:
        parts: dict[str, dict[str, NDArray[np.float32]]] = {}
        for key in archive.files:
            name, _, part = key.rpartition(".")
            parts.setdefault(name, {})[part] = archive[key]
    return {name: ObservedActivations.from_arrays(arrays) for name, arrays in parts.items()}


def load_groups(folder: Path) -> list[StepGroup]:
    """Read the groups of steps that were observed, the noisiest first."""
    return [StepGroup(tuple(group["steps"]), group["below"]) for group in json.loads((folder / STEP_GROUPS).read_text())]


def _save(seen: Mapping[str, ObservedActivations], folder: Path, number: int) -> None:
    arrays = {f"{name}.{part}": value for name, one in seen.items() for part, value in one.arrays().items()}
    np.savez(_file(folder, number), allow_pickle=False, **arrays)


def _file(folder: Path, number: int) -> Path:
    return folder / f"observed_{number}.npz"
