"""The interface through which stages report their progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        stage: name of the current stage.
        done: finished part of its work.
        total: its work; 0 if unknown.
        finished: whether the stage has finished.
        reused: whether an earlier build made it.
        seconds: time that the stage has taken.
        stages_left: number of stages after this one.
        seconds_left: estimated time until the build ends; None if unknown.
    """

    stage: str
    done: int = 0
    total: int = 0
    finished: bool = False
    reused: bool = False
    seconds: float = 0.0
    stages_left: int = 0
    seconds_left: float | None = None


class Reporter(Protocol):
    """Shows the progress of stages."""

    def start(self, stage: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def finish(self, stage: str, seconds: float, *, reused: bool) -> None: ...
