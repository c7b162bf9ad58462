"""Stop cleanly: Ctrl-C and SIGTERM both raise an exception, so that temporary files and child processes are cleaned up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes that a shell reports for a process ended by Ctrl-C or SIGTERM."""


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM."""


@contextlib.contextmanager
def terminated_by_exception() -> Iterator[None]:
    """Make SIGTERM raise `Terminated` in the block, unless a handler is already installed. Only the main thread can handle signals."""
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
    """Attach a note to an interruption of the block that says what work is kept; with nested blocks, the innermost note counts."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if not hasattr(interruption, "__notes__"):
            interruption.add_note(what)
        raise


def verdict(interruption: KeyboardInterrupt) -> tuple[str, int]:
    """Return one line that says what is kept, and the exit code."""
    word, code = ("terminated", TERMINATED) if isinstance(interruption, Terminated) else ("interrupted", INTERRUPTED)
    return ": ".join([word, *getattr(interruption, "__notes__", [])]), code
