"""Show progress bars on a terminal, and nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from engines.terminal.verbosity import is_quiet


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error while the block runs; yield a function to call after each of `total` steps."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        show(done, total, "")

    with _bar(description) as show:
        yield advance


@contextlib.contextmanager
def fraction_bar(description: str) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on standard error while the block runs; yield a function to call with the fraction done and a word on the current work."""
    with _bar(description) as show:
        yield lambda fraction, doing: show(fraction, 1, doing)


@contextlib.contextmanager
def _bar(description: str) -> Iterator[Callable[[float, float, str], None]]:
    """Show a bar, which pulses until something is done; yield a function to call with the work done, all work, and a word."""
    if is_quiet() or not sys.stderr.isatty():
        yield lambda _done, _total, _doing: None
        return
    from engines.terminal.terminal_bar import TerminalBar  # imports rich, which a run that shows nothing does not need

    with TerminalBar() as bar:
        task = bar.add_task(description, total=None, doing="")
        yield lambda done, total, doing: bar.update(task, completed=done, total=total, doing=doing)
