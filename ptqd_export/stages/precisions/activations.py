"""Stage `observe`, or `observe-<precision>`: observes the activations of every layer at real states."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calib.quantizers.observers import ObservedActivations, observe_activations
from calib.quantizers.step_groups import StepGroup
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import input_batches, load_states, network_inputs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.reporter import Reporter, each

STEP_GROUPS = "step_groups.json"


def make_observations(
    context: BuildContext, prepared: Path, states: Path, groups: Sequence[StepGroup], folder: Path, reporter: Reporter
) -> None:
    """Write `observed_<number>.npz` for every group of steps: the range and a sample of the values of every layer's input and output, and
    rows of its input, at the states of the group. Write the groups themselves to `step_groups.json`.
    """
    layers = TracedNetwork.load(prepared).layers
    inputs, outputs = sorted({layer.source for layer in layers}), [layer.name for layer in layers]
    model = context.calibration_device.place(prepared_model(context, prepared))
    chosen = [load_states(states).at(context.table.timestep[list(group.steps)]) for group in groups]
    calls = [input_batches(context, states_of_group) for states_of_group in chosen]
    on_batch = each(reporter, sum(calls))
    for number, states_of_group in enumerate(chosen):
        with observe_activations(model.adapter.network, inputs, outputs, calls[number]) as seen, torch.no_grad():
            for batch in network_inputs(context, states_of_group, on_batch):
                model.adapter(*batch)
        arrays = {f"{name}.{part}": value for name, one in seen.items() for part, value in one.arrays().items()}
        np.savez(_file(folder, number), allow_pickle=False, **arrays)
    (folder / STEP_GROUPS).write_text(json.dumps([asdict(group) for group in groups]))


def load_observations(folder: Path, number: int = 0) -> dict[str, ObservedActivations]:
    """Read the observations of one group of steps, by `<layer>.input` and `<layer>.output`."""
    with np.load(_file(folder, number)) as archive:
        parts: dict[str, dict[str, NDArray[np.float32]]] = {}
        for key in archive.files:
            name, _, part = key.rpartition(".")
            parts.setdefault(name, {})[part] = archive[key]
    return {name: ObservedActivations.from_arrays(arrays) for name, arrays in parts.items()}


def load_groups(folder: Path) -> list[StepGroup]:
    """Read the groups of steps that were observed, the noisiest first."""
    return [StepGroup(tuple(group["steps"]), group["below"]) for group in json.loads((folder / STEP_GROUPS).read_text())]


def _file(folder: Path, number: int) -> Path:
    return folder / f"observed_{number}.npz"
