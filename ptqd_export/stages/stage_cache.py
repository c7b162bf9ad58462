"""Caches stages: a stage's folder is named after the hash of everything it depends on, and appears only when it is complete."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from engines.host.files import sync, sync_tree
from engines.host.room import check_room, naming_full_disks
from engines.terminal.verbosity import detail
from ptqd_export.measuring.trim_heap import trim_heap
from ptqd_export.stages.reporter import Reporter
from ptqd_export.stages.stage_code import StageCode

UNFINISHED = ".unfinished-"
"""Prefix of the folders of stages that are not finished yet, or are being removed."""

DIGITS = 16
"""Hexadecimal digits of the hash in a folder's name."""

StageMaker = Callable[[Path, Reporter], None]
"""Writes a stage's files into the given folder, which is empty or holds the files of an interrupted run of a resumable stage."""


class StageCache:
    """The stages of one build.

    Args:
        folder: parent of the stages' folders.
        reporter: shows the progress of every stage.
        fresh: remove all existing stages.
    """

    def __init__(self, folder: Path, reporter: Reporter, *, fresh: bool = False) -> None:
        self._folder = folder
        self._reporter = reporter
        self._code = StageCode(Path(__file__).parents[2])
        self._libraries: dict[Path, Mapping[str, str]] = {}
        self._ending = ""
        if fresh:
            self.prune()

    def at(self, size: str) -> StageCache:
        """Return the cache of the same build's stages at a size, whose names end with it."""
        other = copy.copy(self)
        other._ending = f"-{size}"
        return other

    def run(self, name: str, inputs: Mapping[str, Any], make: StageMaker, *, room: int = 0, resumable: bool = False) -> Path:
        """Return the folder of a stage, which `make` writes unless an earlier run wrote it from the same inputs.

        Args:
            name: name of the stage, unique in a build.
            inputs: JSON values that determine the result, together with the code of `make` and the libraries it uses. Include the names of
                earlier stages' folders.
            make: a function, or a `partial` of one. If it raises, nothing is kept unless the stage is resumable.
            room: approximate number of bytes that the stage writes.
            resumable: keep the files of an interrupted run, and pass the same folder to `make` in the next run. `make` must recognise which
                files are complete.

        Raises:
            NoRoomError: there is too little room on the disk.
        """
        module, name = _module_of(make), f"{name}{self._ending}"
        folder = self._folder / f"{name}-{self._key(name, inputs, module)}"
        begin = time.monotonic()
        reused = folder.is_dir()
        detail(f"stage {name}: {folder}{' (from an earlier run)' if reused else ''}")
        if not reused:
            check_room(folder, room, f"stage {name}")
            self._reporter.start(name)
            self._make(folder, make, resumable=resumable)
        self._libraries[folder] = self._code.libraries(module)
        self._reporter.finish(name, time.monotonic() - begin, reused=reused)
        return folder

    def libraries(self, folder: Path) -> Mapping[str, str]:
        """Return the versions of the libraries that made a stage of this build, by package."""
        return self._libraries[folder]

    def prune(self) -> None:
        """Remove the stages that this build did not use."""
        for folder in self._folder.glob("*"):
            if folder not in self._libraries:
                _remove(folder)

    def _make(self, folder: Path, make: StageMaker, *, resumable: bool) -> None:
        unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
        if not resumable:
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, exist_ok=resumable)
        try:
            with naming_full_disks(folder):
                make(unfinished, self._reporter)
                sync_tree(unfinished)
                unfinished.rename(folder)
                sync(folder.parent)
        finally:
            gc.collect()  # the nodes and values of a graph form reference cycles, which keep gigabytes of weights alive
            trim_heap()
            if not resumable:
                shutil.rmtree(unfinished, ignore_errors=True)

    def _key(self, name: str, inputs: Mapping[str, Any], module: str) -> str:
        content = json.dumps([name, self._code.key(module), inputs], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:DIGITS]


def finished_stage(folder: Path, name: str) -> Path:
    """Return the folder of a stage of the last build whose stages are in `folder`. A build that ends removes those of other builds."""
    (found,) = folder.glob(f"{name}-{'[0-9a-f]' * DIGITS}")
    return found


def _module_of(make: StageMaker) -> str:
    """Return the name of the module whose code makes a stage."""
    while isinstance(make, partial):
        make = make.func
    return getattr(make, "__module__", type(make).__module__)


def _remove(folder: Path) -> None:
    """Remove a stage. Renames it first, so that a run killed in between does not leave a partial folder that looks complete."""
    renamed = folder if folder.name.startswith(UNFINISHED) else folder.rename(folder.with_name(f"{UNFINISHED}{folder.name}"))
    shutil.rmtree(renamed)
