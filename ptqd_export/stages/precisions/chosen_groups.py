"""Stage `groups-<precision>`: chooses the groups of steps that are worth an engine of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.quantizers.group_choice import Span, least_noise, spans
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.walk.activation_states import States
from ptqd_export.graph.checks.verify import VERIFIED_STATES, batches, full_precision_outputs, oracle_outputs, snr_db
from ptqd_export.models.base import LoadedModel
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.preparation import prepared_model
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_groups
from ptqd_export.stages.precisions.nearest_rounding import Sources, quantizers
from ptqd_export.stages.reporter import Reporter, each

CHOSEN = "chosen_groups.json"


def make_group_choice(context: BuildContext, precision: Precision, sources: Sources, folder: Path, reporter: Reporter) -> None:
    """Write `chosen_groups.json`: the groups, as numbers of the observed ones, and the SNR that was measured for every span of those."""
    network, model = TracedNetwork.load(sources.prepared), prepared_model(context, sources.prepared)
    observed, states = load_groups(sources.seen), load_states(sources.states)
    every = spans(len(observed))
    parts = [states.at(context.table.timestep[list(group.steps)]).first(VERIFIED_STATES // len(observed)) for group in observed]
    runs = sum(batches(parts[number]) for span in (range(len(parts)), *every) for number in span)
    on_piece = each(reporter, len(network.layers) + runs)
    found = quantizers(context, replace(sources, chosen=tuple(every)), network, model)
    layers = found.rounded_to_nearest(precision, on_piece)
    measured = _Measured(model, parts, on_piece, context.plan.calibration.device)
    noise = {span: measured.snr_db(span, own) for span, own in zip(every, found.by_group(precision, layers), strict=True)}
    shares = np.array([len(group.steps) for group in observed]) / sum(len(group.steps) for group in observed)
    groups = least_noise(len(observed), lambda span: -float(np.dot(noise[span], shares[list(span)])))
    record = {"groups": groups, "snr_db": [{"span": span, "parts": decibels} for span, decibels in noise.items()]}
    (folder / CHOSEN).write_text(json.dumps(record))


def load_chosen(folder: Path) -> tuple[Span, ...]:
    """Read the groups that were chosen."""
    return tuple(tuple(span) for span in json.loads((folder / CHOSEN).read_text())["groups"])


class _Measured:
    """Measures a network with the scales of a span in each of the span's parts, against full precision.

    Args:
        model: model with the prepared network.
        parts: states of each part of the chain.
        on_batch: called after every batch.
        device: PyTorch's name of the device.
    """

    def __init__(self, model: LoadedModel, parts: Sequence[States], on_batch: Callable[[], None], device: str) -> None:
        self._model, self._parts, self._on_batch, self._device = model, parts, on_batch, device
        self._exact: list[NDArray[np.floating]] = [full_precision_outputs(model, part, on_batch, device) for part in parts]

    def snr_db(self, span: Span, layers: Sequence[QuantizedLayer]) -> list[float]:
        """Return the SNR of each part of the span, in dB."""
        outputs = (oracle_outputs(self._model, self._parts[number], layers, self._on_batch, device=self._device) for number in span)
        return [snr_db(self._exact[number], out) for number, out in zip(span, outputs, strict=True)]
