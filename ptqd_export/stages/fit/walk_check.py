"""Checks, before a bundle is put together, that the running engines have the noise that their corrections were fitted to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from engines.apps.compare.engine_check import EngineCheck, check_engines
from engines.chain.schedule import Schedule
from engines.host.files import sha256
from ptqd_export.records.statistics_file import WALK
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, schedule_path
from ptqd_export.stages.fit.fit_inputs import fit_networks
from ptqd_export.stages.reporter import Reporter, each


def check_fitted(context: BuildContext, graphs: Mapping[str, Path], walked: Path, _folder: Path, reporter: Reporter) -> None:
    """Measure a few of the walk's figures again: once for the same files of graphs, statistics, libraries and machine. Writes nothing.

    Raises:
        PtqdError: the noise of an engine differs from what the walk measured.
    """
    check = _check(context, graphs, walked)
    check_engines(check, each(reporter, check.evaluations))


def graph_digests(graphs: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every file of the graphs as they are now, by precision and name."""
    return {name: {path.name: sha256(path) for path in sorted(folder.glob("*.onnx*"))} for name, folder in graphs.items()}


def _check(context: BuildContext, graphs: Mapping[str, Path], walked: Path) -> EngineCheck:
    calibration, samples = context.plan.calibration, context.samples
    quantized = [name for name in graphs if name != FULL_PRECISION]
    taken = walked / WALK if (walked / WALK).exists() else schedule_path(walked)
    schedule = Schedule.model_validate_json(taken.read_text())
    return EngineCheck(
        schedule=schedule,
        reference=FULL_PRECISION,
        networks=fit_networks(context, graphs, calibration.batch_size, schedule.networks_at_cut).networks,
        expected={name: [step["snr_db"] for step in json.loads((walked / f"{name}.json").read_text())] for name in quantized},
        noise=samples.noise,
        rows=samples.rows,
        trajectory=calibration.trajectory,
        batch_size=calibration.batch_size,
    )
