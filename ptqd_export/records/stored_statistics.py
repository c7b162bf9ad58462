"""Reads the statistics that were measured on the walk of a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calib.correction.moments import Moments
from engines.bundle.bundle import DEFAULT, Bundle
from engines.errors import UsageError
from ptqd_export.records.statistics_file import StatisticsFile, read_statistics


@dataclass(frozen=True)
class StoredStatistics:
    """The moments of every step before guidance and the layer records, by precision."""

    moments: dict[str, list[Moments]]
    layers: dict[str, list[dict[str, Any]]]


def load_statistics(bundle: Bundle, schedule: str) -> StoredStatistics:
    """Read the statistics that were measured on a schedule's walk.

    Raises:
        UsageError: the bundle has no statistics of this schedule.
        BundleError: the statistics are damaged.
    """
    names = {name: statistics_file(bundle, schedule, name) for name in bundle.manifest.precisions}
    listed = {name: file for name, file in names.items() if file in bundle.manifest.files}
    if not listed:
        raise UsageError(
            "The bundle has no statistics of this schedule.",
            found=f"{schedule}: no file such as {statistics_file(bundle, schedule, 'w8a8')}",
            expected="a schedule with its own walk: the default schedule that `ptqd-export build` writes, or one made with `--fit walk`",
            mend="use --fit walk, or build the bundle again",
        )
    files = {name: read_statistics(bundle, file, StatisticsFile) for name, file in listed.items()}
    moments = {name: [Moments.from_json(step.moments) for step in content.steps] for name, content in files.items()}
    return StoredStatistics(moments, {name: content.layers for name, content in files.items()})


def statistics_file(bundle: Bundle, schedule: str, precision: str) -> str:
    """Name of the file with the statistics of a precision on a schedule's walk."""
    folder = bundle.statistics_folder
    return f"{folder}/{precision}.json" if schedule == DEFAULT else f"{folder}/{schedule}/{precision}.json"
