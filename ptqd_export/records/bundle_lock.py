"""One writer a bundle: a second one is told who the first is, and what a killed one left half-written is removed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.host.files import remove_parts, writable_folder
from engines.host.locks import locked_at_once

UNFINISHED = ".unfinished"
"""Folder of the bundle where a new one is put together."""


@contextlib.contextmanager
def writing_to(bundle: Path) -> Iterator[None]:
    """Be the only process that writes to a bundle's folder, which is made where it is not there.

    Engines have locks of their own (`EngineCache`), because samplers build them too; their folders are left alone.

    Raises:
        UsageError: the folder cannot be written.
        PtqdError: another process writes to it.
    """
    local = writable_folder(bundle) / "local"
    with locked_at_once(local / "bundle", f"writing to {bundle}"):
        _remove_leftovers(bundle, local)
        yield


def _remove_leftovers(bundle: Path, local: Path) -> None:
    """The parts of files, the states of a walk, the half of a bundle."""
    portable = [folder for folder in bundle.rglob("*") if folder.is_dir() and not folder.is_relative_to(local)]
    machines = [folder for folder in local.iterdir() if folder.is_dir()]
    for folder in (bundle, *portable, *machines):
        remove_parts(folder)
    for folder in (bundle / UNFINISHED, *local.glob("walk-*")):
        shutil.rmtree(folder, ignore_errors=True)
