"""Stage `states`: draws real states of the sampler, for every stage that needs activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from calib.walk.activation_states import States, draw_states
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, graph_path
from ptqd_export.stages.reporter import Reporter

STATES = "states.npz"


def make_states(context: BuildContext, traced: Path, folder: Path, reporter: Reporter) -> None:
    """Write `states.npz` with states of full-precision chains, the same number from every step."""
    calibration, table = context.plan.calibration, context.table
    per_step = -(-context.activation_samples // table.steps)
    samples = context.samples.first(max(per_step, calibration.batch_size))
    states = draw_states(
        table,
        context.denoiser(graph_path({FULL_PRECISION: traced}, FULL_PRECISION), calibration.batch_size),
        context.guidance,
        samples,
        context.activation_samples,
        calibration.batch_size,
        on_step=lambda taken: reporter.advance(taken, table.steps * math.ceil(samples.count / calibration.batch_size)),
    )
    states.save(folder / STATES)


def load_states(folder: Path) -> States:
    """Read the states that `make_states` wrote."""
    return States.load(folder / STATES)


def input_batches(context: BuildContext, states: States) -> int:
    """Return the number of batches that `network_inputs` yields."""
    return math.ceil(len(states.rows) / context.plan.calibration.batch_size)


def network_inputs(
    context: BuildContext, states: States, on_batch: Callable[[], None] = lambda: None, size: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the network's inputs in batches of `size` states (None: the plan's batch size), on its calibration device. Under guidance, each
    state has both branches. `on_batch` is called after every batch.
    """
    size = size or context.plan.calibration.batch_size
    for begin in range(0, len(states.rows), size):
        part = slice(begin, begin + size)
        feeds = context.model.feeds(states.samples[part], states.timesteps[part], states.rows[part], guided=context.guided)
        yield context.calibration_device.place_inputs([torch.from_numpy(value) for value in feeds.values()])
        on_batch()
