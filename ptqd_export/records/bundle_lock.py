"""Allows one writer per bundle. A second writer gets an error that names the first, and leftovers of a killed writer are removed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.host.files import remove_parts, writable_folder
from engines.host.locks import locked_at_once

UNFINISHED = ".unfinished"
"""Folder inside the bundle where a new bundle is assembled."""


@contextlib.contextmanager
def writing_to(bundle: Path) -> Iterator[None]:
    """Locks a bundle's folder so that only this process writes to it. Creates the folder if it does not exist.

    Engines have their own locks (`EngineCache`), because samplers build them too; their folders are not touched.

    Raises:
        UsageError: the folder cannot be written.
        PtqdError: another process is writing to it.
    """
    local = writable_folder(bundle) / "local"
    with locked_at_once(local / "bundle", f"writing to {bundle}"):
        _remove_leftovers(bundle, local)
        yield


def _remove_leftovers(bundle: Path, local: Path) -> None:
    """Remove partial files, states of a walk, and an unfinished bundle."""
    portable = [folder for folder in bundle.rglob("*") if folder.is_dir() and not folder.is_relative_to(local)]
    machines = [folder for folder in local.iterdir() if folder.is_dir()]
    for folder in (bundle, *portable, *machines):
        remove_parts(folder)
    for folder in (bundle / UNFINISHED, *local.glob("walk-*")):
        shutil.rmtree(folder, ignore_errors=True)
