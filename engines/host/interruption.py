"""A clean stop: Ctrl-C and SIGTERM both end the work where it is, by an exception, so that files and child processes are cleared away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes: what a shell reports of a process that Ctrl-C or SIGTERM ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception."""


@contextlib.contextmanager
def terminated_by_exception() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block, unless somebody else has taken it over; only the main thread can take signals."""
    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not alone:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def keeping(what: str) -> Iterator[None]:
    """Whoever interrupts the block is told what is kept of its work; the innermost such block says it."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if not hasattr(interruption, "__notes__"):
            interruption.add_note(what)
        raise


def verdict(interruption: KeyboardInterrupt) -> tuple[str, int]:
    """One line that says what is kept, and the exit code."""
    word, code = ("terminated", TERMINATED) if isinstance(interruption, Terminated) else ("interrupted", INTERRUPTED)
    return ": ".join([word, *getattr(interruption, "__notes__", [])]), code
