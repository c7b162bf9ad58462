"""Stages `states` and `observe`: real states of the sampler, and the activations of every layer at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calib.activation_states import States, draw_states
from calib.observers import Observed, observing
from ptqd_export.build.context import FULL_PRECISION, BuildContext, graph_path
from ptqd_export.build.stages import Reporter
from ptqd_export.build.tracing import Network
from ptqd_export.models.base import LoadedModel

STATES = "states.npz"
OBSERVED = "observed.npz"


def make_states(context: BuildContext, traced: Path, folder: Path, reporter: Reporter) -> None:
    """Writes `states.npz`: states of full-precision chains, the same number from every step."""
    calibration, noise, table = context.plan.calibration, context.noise(), context.table
    a_step = -(-calibration.activation_samples // table.steps)
    samples = np.arange(max(a_step, calibration.batch_size), dtype=np.int64)
    conditioning = context.model.conditioning
    rows = np.zeros_like(samples) if conditioning is None else noise.row(samples, conditioning.rows)
    network = context.denoiser(graph_path({FULL_PRECISION: traced}, FULL_PRECISION), calibration.batch_size)
    states = draw_states(
        table,
        network,
        context.plan.sampler.guidance,
        noise,
        rows,
        calibration.activation_samples,
        calibration.batch_size,
        folder,
        on_step=lambda done: reporter.advance(done, table.steps),
    )
    states.save(folder / STATES)


def make_observations(context: BuildContext, traced: Path, states: Path, folder: Path, reporter: Reporter) -> None:
    """Writes `observed.npz`: of the inputs and outputs of every layer, the range and a sample of the values."""
    layers = Network.load(traced).layers
    batches = list(_batches(context.model, States.load(states / STATES), context.guided, context.plan.calibration.batch_size))
    inputs = sorted({layer.source for layer in layers})
    with observing(context.model.adapter.network, inputs, [layer.name for layer in layers], len(batches)) as seen, torch.no_grad():
        for done, batch in enumerate(batches):
            reporter.advance(done, len(batches))
            context.model.adapter(*batch)
    arrays = {f"{name}.{part}": value for name, one in seen.items() for part, value in one.arrays().items()}
    np.savez(folder / OBSERVED, allow_pickle=False, **arrays)


def load_observations(folder: Path) -> dict[str, Observed]:
    """What `make_observations` wrote, by `<layer>.input` and `<layer>.output`."""
    with np.load(folder / OBSERVED) as archive:
        names = [name.removesuffix(".values") for name in archive.files if name.endswith(".values")]
        return {name: Observed.from_arrays(archive[f"{name}.values"], archive[f"{name}.range"]) for name in names}


def _batches(model: LoadedModel, states: States, guided: bool, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of the network in batches; under guidance both branches of every state."""
    for begin in range(0, len(states.rows), size):
        part = slice(begin, begin + size)
        branches = 2 if guided else 1
        sample, timestep = (torch.from_numpy(np.concatenate([value[part]] * branches)) for value in (states.samples, states.timesteps))
        conditions = {} if model.conditioning is None else model.conditioning.feeds(states.rows[part], guided=guided)
        yield sample, timestep, *(torch.from_numpy(value) for value in conditions.values())
