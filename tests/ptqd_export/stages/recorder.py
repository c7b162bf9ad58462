"""A reporter that records its calls, for tests that check them and for tests that need some reporter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Recorder:
    """A `ptqd_export.stages.reporter.Reporter`.

    Attributes:
        told: recorded calls in order, each with its name and arguments.
    """

    told: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, stage: str) -> None:
        self.told.append(("start", stage))

    def advance(self, done: float, total: float) -> None:
        self.told.append(("advance", done, total))

    def finish(self, stage: str, seconds: float, *, reused: bool) -> None:
        assert seconds >= 0
        self.told.append(("finish", stage, reused))

    @property
    def finished(self) -> dict[str, bool]:
        """Whether each finished stage was reused."""
        return {entry[1]: entry[2] for entry in self.told if entry[0] == "finish"}
