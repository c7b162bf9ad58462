"""The interface through which stages report their progress."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Shows the progress of stages."""

    def start(self, stage: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def finish(self, stage: str, seconds: float, *, reused: bool) -> None: ...
