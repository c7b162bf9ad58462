"""Stage `observe`, or `observe-<precision>`: observes the activations of every layer at real states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calib.quantizers.observers import ObservedActivations, observe_activations
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states, network_inputs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.reporter import Reporter

OBSERVED = "observed.npz"


def make_observations(context: BuildContext, prepared: Path, states: Path, steps: Sequence[int], folder: Path, reporter: Reporter) -> None:
    """Write `observed.npz`, at the states of the given steps: the range and a sample of the values of every layer's input and output, and
    rows of its input.
    """
    layers = TracedNetwork.load(prepared).layers
    inputs = sorted({layer.source for layer in layers})
    chosen = load_states(states).at(context.table.timestep[list(steps)])
    model = context.calibration_device.place(prepared_model(context, prepared))
    calls = -(-len(chosen.rows) // context.plan.calibration.batch_size)
    with observe_activations(model.adapter.network, inputs, [layer.name for layer in layers], calls) as seen, torch.no_grad():
        for batch in network_inputs(context, chosen, reporter):
            model.adapter(*batch)
    arrays = {f"{name}.{part}": value for name, one in seen.items() for part, value in one.arrays().items()}
    np.savez(folder / OBSERVED, allow_pickle=False, **arrays)


def load_observations(folder: Path) -> dict[str, ObservedActivations]:
    """Read the observations that `make_observations` wrote, by `<layer>.input` and `<layer>.output`."""
    with np.load(folder / OBSERVED) as archive:
        parts: dict[str, dict[str, NDArray[np.float32]]] = {}
        for key in archive.files:
            name, _, part = key.rpartition(".")
            parts.setdefault(name, {})[part] = archive[key]
    return {name: ObservedActivations.from_arrays(arrays) for name, arrays in parts.items()}
