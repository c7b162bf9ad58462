"""Removes a schedule from a bundle."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.image_size import ImageSize
from engines.errors import UsageError
from engines.host.interruption import keeping
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.schedules.stored_schedule import store_schedule


def remove_schedule(bundle: str | PathLike[str], name: str, size: ImageSize | None = None) -> None:
    """Remove a schedule of a size, by default the first, and the statistics that belong to it alone.

    Raises:
        UsageError: there is no such schedule, or it is the default.
        PtqdError: the bundle is damaged, or another process is writing to it. Nothing is removed.
    """
    folder = Path(bundle)
    if name == DEFAULT:
        raise UsageError("The default schedule cannot be removed.", found=f"--remove {name}", expected="a schedule that was added")
    Bundle.open(folder, size).schedule(name)
    with writing_to(folder), keeping("the bundle still has the schedule"):
        store_schedule(Bundle.open(folder, size), name, {})
