"""Resumable work: a stage's folder is named by the hash of everything that it depends on, and appears only when it is whole."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ptqd_export
from engines.host.files import sync, sync_tree
from engines.host.room import check_room, naming_full_disks
from ptqd_export.measuring.trim_heap import trim_heap
from ptqd_export.stages.reporter import Reporter
from ptqd_export.stages.stage_code import StageCode

UNFINISHED = ".unfinished-"
"""How the name of a folder begins that is no stage yet, or no longer."""


StageMaker = Callable[[Path, Reporter], None]
"""Writes a stage's files into the folder that it is given: empty, or with what an interrupted run of a resumable stage left."""


@dataclass(frozen=True)
class Finished:
    """One stage of this run."""

    name: str
    seconds: float
    reused: bool


class StageCache:
    """The stages of one build.

    Args:
        folder: where the stages' folders are kept.
        reporter: is told of every stage.
        fresh: forget what is there.
    """

    def __init__(self, folder: Path, reporter: Reporter, *, fresh: bool = False) -> None:
        self._folder = folder
        self._reporter = reporter
        self._code = StageCode(Path(ptqd_export.__file__).parents[1])
        self._libraries: dict[Path, Mapping[str, str]] = {}
        self.finished: list[Finished] = []
        if fresh:
            self.prune()

    def run(self, name: str, inputs: Mapping[str, Any], make: StageMaker, *, room: int = 0, resumable: bool = False) -> Path:
        """The folder of a stage; made by `make` unless an earlier run made it from the same inputs.

        Args:
            name: of the stage, once a build.
            inputs: JSON values that, with the code of `make` and the libraries under it, determine the result. Name the folders of earlier
                stages here.
            make: a function, or a `partial` of one; when it raises, nothing is kept.
            room: about how many bytes it writes.
            resumable: keep what it wrote, and give it the same folder again in the next run: `make` tells whole files from others.

        Raises:
            NoRoomError: there is too little room on the disk.
        """
        module = _module_of(make)
        folder = self._folder / f"{name}-{self._key(name, inputs, module)}"
        begin = time.monotonic()
        reused = folder.is_dir()
        if not reused:
            check_room(folder, room, f"stage {name}")
            self._reporter.start(name)
            self._make(folder, make, resumable=resumable)
        self._libraries[folder] = self._code.libraries(module)
        self.finished.append(Finished(name, time.monotonic() - begin, reused))
        self._reporter.finish(name, self.finished[-1].seconds, reused=reused)
        return folder

    def libraries(self, folder: Path) -> Mapping[str, str]:
        """Versions of the libraries that made a stage of this build, by package."""
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
            gc.collect()  # the nodes and values of a graph hold each other, and with them gigabytes of weights, until somebody looks
            trim_heap()
            if not resumable:
                shutil.rmtree(unfinished, ignore_errors=True)

    def _key(self, name: str, inputs: Mapping[str, Any], module: str) -> str:
        content = json.dumps([name, self._code.key(module), inputs], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _module_of(make: StageMaker) -> str:
    """The module whose code makes a stage."""
    while isinstance(make, partial):
        make = make.func
    return getattr(make, "__module__", type(make).__module__)


def _remove(folder: Path) -> None:
    """A stage loses its name first, lest a run that is killed meanwhile leave half of it there as if it were whole."""
    nameless = folder if folder.name.startswith(UNFINISHED) else folder.rename(folder.with_name(f"{UNFINISHED}{folder.name}"))
    shutil.rmtree(nameless)
