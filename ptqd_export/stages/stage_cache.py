"""Resumable work: a stage's folder is named by the hash of everything that it depends on, and appears only when it is whole."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import ptqd_export
from engines.host.files import sync, sync_tree
from engines.host.room import check_room, naming_full_disks
from ptqd_export.measuring.trim_heap import trim_heap

PACKAGES = ("engines", "calib", "ptqd_export")

UNFINISHED = ".unfinished-"
"""How the name of a folder begins that is no stage yet, or no longer."""


class Reporter(Protocol):
    """Shows how far a stage is."""

    def start(self, stage: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def finish(self, stage: str, seconds: float, *, reused: bool) -> None: ...


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
        self._used: set[Path] = set()
        self.finished: list[Finished] = []
        if fresh:
            self.prune()

    def run(self, name: str, inputs: Mapping[str, Any], make: StageMaker, *, room: int = 0, resumable: bool = False) -> Path:
        """The folder of a stage; made by `make` unless an earlier run made it from the same inputs.

        Args:
            name: of the stage, once a build.
            inputs: JSON values that, with the source code, determine the result. Name the folders of earlier stages here.
            make: when it raises, nothing is kept.
            room: about how many bytes it writes.
            resumable: keep what it wrote, and give it the same folder again in the next run: `make` tells whole files from others.

        Raises:
            NoRoomError: there is too little room on the disk.
        """
        folder = self._folder / f"{name}-{self._key(name, inputs)}"
        begin = time.monotonic()
        reused = folder.is_dir()
        if not reused:
            check_room(folder, room, f"stage {name}")
            self._reporter.start(name)
            self._make(folder, make, resumable=resumable)
        self._used.add(folder)
        self.finished.append(Finished(name, time.monotonic() - begin, reused))
        self._reporter.finish(name, self.finished[-1].seconds, reused=reused)
        return folder

    def prune(self) -> None:
        """Remove the stages that this build did not use."""
        for folder in self._folder.glob("*"):
            if folder not in self._used:
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

    def _key(self, name: str, inputs: Mapping[str, Any]) -> str:
        content = json.dumps([name, self._sources, inputs], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def _sources(self) -> str:
        """Hash of this project's own code: what another version made is not reused."""
        root = Path(ptqd_export.__file__).parents[1]
        files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _remove(folder: Path) -> None:
    """A stage loses its name first, lest a run that is killed meanwhile leave half of it there as if it were whole."""
    nameless = folder if folder.name.startswith(UNFINISHED) else folder.rename(folder.with_name(f"{UNFINISHED}{folder.name}"))
    shutil.rmtree(nameless)
