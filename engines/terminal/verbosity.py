"""How much the command lines tell, kept in the standard `logging` module: `--verbose` adds details, `--quiet` leaves errors and results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("ptqd_export")


class _ToStandardError(logging.Handler):
    """Writes to the standard error of the moment, which a progress bar or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def is_quiet() -> bool:
    """Whether progress and remarks are left out."""
    return LOG.getEffectiveLevel() >= logging.ERROR


def is_verbose() -> bool:
    """Whether details are shown."""
    return LOG.isEnabledFor(logging.INFO)


def detail(text: str) -> None:
    """Tell a detail, which `--verbose` shows."""
    LOG.info(text)


@contextmanager
def told_on_standard_error() -> Iterator[None]:
    """Show messages on standard error while the block runs, and restore the level afterwards."""
    handler, level = _ToStandardError(), LOG.level
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
