"""How stages report their progress, and what they pass on to the caller of a build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeAlias

from ptqd_export.stages.build_estimate import BuildEstimate


@dataclass(frozen=True)
class BuildProgress:
    """Progress of a build.

    Attributes:
        stage: name of the stage that is running, or has just finished.
        done, total: work done in the stage, and all of its work, in units of the stage: evaluations of a network, layers, or runs. `total`
            is None while the stage cannot tell.
        finished: whether the stage has finished.
        reused: whether the stage was finished by an earlier build. Then it is reported once.
        seconds: time that the stage has taken so far.
        stages_left: stages that follow, in order.
        seconds_left: estimated time that the build still takes; None while there is no estimate.
        estimate: the estimate of the whole build that was made before its first long stage; None before.
    """

    stage: str
    done: float
    total: float | None
    finished: bool
    reused: bool
    seconds: float
    stages_left: tuple[str, ...]
    seconds_left: float | None
    estimate: BuildEstimate | None = None


OnProgress: TypeAlias = Callable[[BuildProgress], None]


class Reporter(Protocol):
    """Is told the progress of stages."""

    def start(self, stage: str) -> None: ...
    def advance(self, done: float, total: float) -> None: ...
    def finish(self, stage: str, seconds: float, *, reused: bool) -> None: ...


def each(reporter: Reporter, total: int, before: int = 0) -> Callable[[], None]:
    """Return a function to call after each of `total` pieces of work, of which `before` are done."""
    done = count(before + 1)
    return lambda: reporter.advance(next(done), total)
