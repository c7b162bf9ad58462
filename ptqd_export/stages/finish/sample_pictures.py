"""Stage `pictures`: draws a few samples of the finished schedule for the report, with the graphs as they run on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from engines.apps.pictures.images import save_png
from engines.arrays import Float32
from engines.bundle.first_stage_record import DecoderRecord
from engines.chain.features import cut_name
from engines.chain.schedule import Schedule
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.image_decoder import Decoder
from ptqd_export.measuring.trim_heap import trim_heap
from ptqd_export.report.pictures import KINDS, MOST, draw, sheet_of
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, network_graphs, schedule_path
from ptqd_export.stages.network.decoder_files import decoder_record
from ptqd_export.stages.reporter import Reporter, each

SHEET = "pictures.png"


def make_pictures(
    context: BuildContext, graphs: Mapping[str, Path], decoder: Path | None, walked: Path, folder: Path, reporter: Reporter
) -> None:
    """Write `pictures.png` with at most eight samples, and no more than the walk had, so that it takes a small part of the walk's time."""
    schedule = Schedule.model_validate_json(schedule_path(walked).read_text())
    record, num = decoder_record(decoder), min(MOST, context.plan.calibration.samples)
    batches = 0 if record is None else math.ceil(num / record.batch)
    on_batch = each(reporter, len(KINDS) * (len(schedule.steps) + batches))
    kinds = _states(context, graphs, schedule, num, on_batch)
    trim_heap()  # the networks are closed; decoding needs as much memory as they did
    if decoder is not None and record is not None:
        kinds = _decoded(context, decoder, record, kinds, on_batch)
    save_png(sheet_of(kinds), folder / SHEET)


def _states(context: BuildContext, graphs: Mapping[str, Path], schedule: Schedule, num: int, on_step: Callable[[], None]) -> list[Float32]:
    """Return the final states for every kind of picture."""
    used = {FULL_PRECISION, *(step.precision for step in schedule.steps)}
    denoisers: dict[str, EngineDenoiser] = {name: context.network(network_graphs(graphs, name), num) for name in used}
    if schedule.cut is not None:
        at_cut = (cut_name(name, schedule.cut) for name in used)
        denoisers |= {name: context.network_at(graphs, name, num) for name in at_cut}
    conditioning = context.model.conditioning
    rows = None if conditioning is None else conditioning.rows
    return draw(
        schedule,
        denoisers,
        FULL_PRECISION,
        context.model.sample_shape,
        rows,
        num=num,
        on_step=on_step,
    )


def _decoded(
    context: BuildContext, folder: Path, record: DecoderRecord, kinds: list[Float32], on_batch: Callable[[], None]
) -> list[Float32]:
    """Decode the states of every kind, batch by batch."""
    decode = Decoder(context.backend.open(folder / record.file, record.batch), record.batch, record.image_shape, record.tile)

    def images(states: Float32) -> Float32:
        found = decode(states)
        on_batch()
        return found

    return [np.concatenate([images(kind[begin : begin + record.batch]) for begin in range(0, len(kind), record.batch)]) for kind in kinds]
