"""A process that dies at the n-th change that it makes to files, as if it were killed there: nothing that comes later changes anything."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"})
WRITING = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """The process would be dead by now."""


class _Process:
    """Counts the changes while it is watched; `last` is the number of the one that it does not live to make."""

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
    """In the block, this change and all that follow, those of `finally` clauses too, raise instead; the block ends there, or well."""
    _process.changes, _process.last, _process.watched = 0, change, True
    try:
        with contextlib.suppress(Killed):
            yield
    finally:
        _process.watched = False


def every_death(prepare: Callable[[], None], act: Callable[[], object]) -> Iterator[int]:
    """Let `act` die at its first change, at its second and so on, each time after `prepare`, until it lives; yields how far it came."""
    for change in range(1, sys.maxsize):
        prepare()
        with dying_at(change):
            act()
        yield change
        if _process.changes < change:
            return
