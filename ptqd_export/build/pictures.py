"""Stage `pictures`: a few samples of the finished schedule for the report, from the graphs as they run here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from engines.images import save_png
from engines.schedule import Schedule
from ptqd_export.build.context import FULL_PRECISION, BuildContext, graph_path
from ptqd_export.build.stages import Reporter
from ptqd_export.build.statistics import SCHEDULE
from ptqd_export.report.pictures import KINDS, NUM, draw

SHEET = "pictures.png"


def make_pictures(context: BuildContext, graphs: Mapping[str, Path], walked: Path, folder: Path, reporter: Reporter) -> None:
    """Writes `pictures.png`. Its chains take a small part of the walk's network calls: three times eight samples."""
    schedule = Schedule.model_validate_json((walked / SCHEDULE).read_text())
    used = {FULL_PRECISION, *(step.precision for step in schedule.steps)}
    denoisers = {name: context.denoiser(graph_path(graphs, name), NUM) for name in used}
    conditioning, taken = context.model.conditioning, count(1)
    total = len(KINDS) * len(schedule.steps)
    rows = None if conditioning is None else conditioning.rows
    sheet = draw(schedule, denoisers, FULL_PRECISION, context.model.sample_shape, rows, lambda: reporter.advance(next(taken), total))
    save_png(sheet, folder / SHEET)
