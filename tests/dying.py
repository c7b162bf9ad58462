"""Simulate a process that is killed at its n-th change to files: this change and all later ones raise and have no effect."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"})
WRITING = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """Raised at the change where the process would have been killed."""


class _Process:
    """Counts the changes to files while `watched` is set, and raises from change number `last` on."""

    def __init__(self) -> None:
        self.watched = False
        self.changes = 0
        self.last = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watched and (event in CHANGES or (event == "open" and arguments[2] & WRITING)):
            self.changes += 1
            if self.changes >= self.last:
                raise Killed


_process = _Process()
sys.addaudithook(_process)


@contextlib.contextmanager
def dying_at(change: int) -> Iterator[None]:
    """Make this change and all later ones in the block raise, including those in `finally` clauses.

    The block ends at the first of them, or normally if it makes fewer changes.
    """
    _process.changes, _process.last, _process.watched = 0, change, True
    try:
        with contextlib.suppress(Killed):
            yield
    finally:
        _process.watched = False


def every_death(prepare: Callable[[], None], act: Callable[[], object]) -> Iterator[int]:
    """Call `prepare` and `act` repeatedly, killing `act` at its first change, then at its second and so on, until it survives.

    Yields the number of the change after each attempt.
    """
    for change in range(1, sys.maxsize):
        prepare()
        with dying_at(change):
            act()
        yield change
        if _process.changes < change:
            return
