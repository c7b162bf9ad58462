"""Turns what stages report into the progress of a build."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ptqd_export.stages.build_estimate import BuildEstimate
from ptqd_export.stages.reporter import BuildProgress, OnProgress


class ProgressTracker:
    """A `ptqd_export.stages.reporter.Reporter` that tells the progress of a whole build.

    Args:
        on_progress: called when a stage starts, advances and finishes; None for no calls.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._left: list[str] = []
        self._stage = ""
        self._begin = time.monotonic()
        self._done: tuple[float, float | None] = (0, None)
        self._estimator: Callable[[Sequence[str]], BuildEstimate] | None = None
        self._estimate: BuildEstimate | None = None
        self._pace = _Pace()

    def plan(self, stages: Sequence[str]) -> None:
        """Set the stages that follow, in order."""
        self._left = list(stages)

    def estimate_with(self, estimator: Callable[[Sequence[str]], BuildEstimate]) -> None:
        """Estimate the time of the build when the next stage starts. Stages that were finished before then take no time.

        `estimator` is called with the stages that follow.
        """
        self._estimator = estimator

    def start(self, stage: str) -> None:
        self._enter(stage)
        if self._on_progress is not None and self._estimator is not None and self._estimate is None:
            self._estimate = self._estimator([stage, *self._left])
            self._begin = time.monotonic()
        self._tell(0.0)

    def advance(self, done: float, total: float) -> None:
        self._done = (done, total)
        self._tell(time.monotonic() - self._begin)

    def finish(self, stage: str, seconds: float, *, reused: bool) -> None:
        if stage != self._stage:  # a reused stage does not start
            self._enter(stage)
        if self._estimate is not None and not reused:
            self._pace.add(self._estimate.seconds.get(stage, 0.0), seconds)
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
        left = self._seconds_left(seconds, finished=finished)
        self._on_progress(BuildProgress(self._stage, done, total, finished, reused, seconds, tuple(self._left), left, self._estimate))

    def _seconds_left(self, seconds: float, *, finished: bool) -> float | None:
        if self._estimate is None:
            return None
        estimated, (done, total) = self._estimate.seconds, self._done
        later = self._pace.factor * sum(estimated.get(stage, 0.0) for stage in self._left)
        if finished:
            return later
        if total is not None and done:
            return later + seconds * (total - done) / done
        return later + max(0.0, self._pace.factor * estimated.get(self._stage, 0.0) - seconds)


class _Pace:
    """How fast the stages so far ran, relative to their estimates."""

    def __init__(self) -> None:
        self._estimated = self._taken = 0.0

    def add(self, estimated: float, taken: float) -> None:
        self._estimated += estimated
        self._taken += taken

    @property
    def factor(self) -> float:
        """Time taken over time estimated; 1 before any stage has finished, and at most 2 times more or less."""
        return min(2.0, max(0.5, self._taken / self._estimated)) if self._estimated else 1.0
