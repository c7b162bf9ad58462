"""Stages `statistics` and `schedule`: walk the calibration samples, record the measurements, and fit the schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from calib.walk.end_choice import choose_by_end, end_evaluations, round_size
from calib.walk.fit import FitSettings, fit_on_walk, walk_evaluations
from ptqd_export.records.statistics_file import WALK, step_record
from ptqd_export.stages.build_context import BuildContext, schedule_path
from ptqd_export.stages.fit.fit_inputs import fit_networks, judged_pictures, walked_networks
from ptqd_export.stages.reporter import Reporter, each


def make_statistics(
    context: BuildContext, graphs: Mapping[str, Path], decoder: Path | None, settings: FitSettings, folder: Path, reporter: Reporter
) -> None:
    """Write `schedule.json`, and one file of records for each network: `<precision>.json` with all steps for every precision except full,
    and `<precision>+<cut>.json` with the steps that reuse features for every precision at a cut.

    If the corrections were chosen after the walk, `walk.json` is the schedule that the walk itself took, and the graph in the folder
    `decoder`, if there is one, drew the pictures that they were judged by.
    """
    walked, at_cut = walk_evaluations(graphs, settings), () if settings.reuse is None else settings.reuse.networks
    on_evaluation = each(reporter, walked + end_evaluations(settings, len(graphs)))
    with walked_networks(context, graphs, at_cut) as networks:
        fitted = fit_on_walk(networks, settings, folder, on_evaluation)
    if settings.proposals:
        taken = replace(fitted, settings=settings.undecided)
        (folder / WALK).write_text(taken.schedule.model_dump_json(indent=1) + "\n")
        networks = replace(fit_networks(context, graphs, round_size(settings), at_cut), pictured=judged_pictures(context, decoder))
        fitted = choose_by_end(networks, fitted, on_evaluation)
    for name in (*(precision.name for precision in context.engine_precisions), *at_cut):
        records = [step_record(result, name, settings.sampler.guidance) for result in fitted.results if name in result.moments]
        (folder / f"{name}.json").write_text(json.dumps(records, allow_nan=False))
    schedule_path(folder).write_text(fitted.schedule.model_dump_json(indent=1) + "\n")
