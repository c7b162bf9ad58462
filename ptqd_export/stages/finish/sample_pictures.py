"""Stage `pictures`: draws a few samples of the finished schedule for the report, with the graphs as they run on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from engines.apps.pictures.images import save_png
from engines.arrays import Float32
from engines.chain.schedule import Schedule
from engines.networks.decoder import Decoder
from ptqd_export.measuring.trim_heap import trim_heap
from ptqd_export.report.pictures import KINDS, MOST, draw, sheet_of
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, graph_path, schedule_path
from ptqd_export.stages.network.decoding import decoder_record
from ptqd_export.stages.reporter import Reporter

SHEET = "pictures.png"


def make_pictures(
    context: BuildContext, graphs: Mapping[str, Path], decoder: Path | None, walked: Path, folder: Path, reporter: Reporter
) -> None:
    """Write `pictures.png` with at most eight samples, and no more than the walk had, so that it takes a small part of the walk's time."""
    schedule = Schedule.model_validate_json(schedule_path(walked).read_text())
    kinds = _states(context, graphs, schedule, reporter)
    trim_heap()  # the networks are closed; decoding needs as much memory as they did
    decode = _decoder(context, decoder)
    save_png(sheet_of(map(decode, kinds)), folder / SHEET)


def _states(context: BuildContext, graphs: Mapping[str, Path], schedule: Schedule, reporter: Reporter) -> list[Float32]:
    """Return the final states for every kind of picture."""
    num = min(MOST, context.plan.calibration.samples)
    used = {FULL_PRECISION, *(step.precision for step in schedule.steps)}
    denoisers = {name: context.denoiser(graph_path(graphs, name), num) for name in used}
    conditioning, taken = context.model.conditioning, count(1)
    total = len(KINDS) * len(schedule.steps)
    rows = None if conditioning is None else conditioning.rows
    return draw(
        schedule,
        denoisers,
        FULL_PRECISION,
        context.model.sample_shape,
        rows,
        num=num,
        on_step=lambda: reporter.advance(next(taken), total),
    )


def _decoder(context: BuildContext, folder: Path | None) -> Decoder:
    record = decoder_record(folder)
    if folder is None or record is None:
        return Decoder()
    return Decoder(context.backend.open(folder / record.file, record.batch), record.batch)
