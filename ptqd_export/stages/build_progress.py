"""Turns what stages report into the progress of a build."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ptqd_export.stages.reporter import BuildProgress, OnProgress


class ProgressTracker:
    """A `ptqd_export.stages.reporter.Reporter` that tells the progress of a whole build.

    Args:
        on_progress: is told when a stage starts, advances and finishes; None tells nobody.
        stages: names of all stages of the build, in order.
    """

    def __init__(self, on_progress: OnProgress | None, stages: Sequence[str] = ()) -> None:
        self._on_progress = on_progress
        self._left = list(stages)
        self._stage = ""
        self._begin = time.monotonic()
        self._done: tuple[float, float | None] = (0, None)

    def start(self, stage: str) -> None:
        self._enter(stage)
        self._tell(time.monotonic() - self._begin)

    def advance(self, done: float, total: float) -> None:
        self._done = (done, total)
        self._tell(time.monotonic() - self._begin)

    def finish(self, stage: str, seconds: float, *, reused: bool) -> None:
        if stage != self._stage:  # a reused stage does not start
            self._enter(stage)
        self._tell(seconds, finished=True, reused=reused)

    def _enter(self, stage: str) -> None:
        self._stage, self._begin, self._done = stage, time.monotonic(), (0, None)
        if stage in self._left:
            del self._left[: self._left.index(stage) + 1]

    def _tell(self, seconds: float, *, finished: bool = False, reused: bool = False) -> None:
        if self._on_progress is None:
            return
        done, total = self._done
        if finished and total is not None:
            done = total
        self._on_progress(BuildProgress(self._stage, done, total, finished, reused, seconds, tuple(self._left), None))
