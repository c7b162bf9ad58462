"""Where a bundle keeps what its engines were timed at, machine by machine."""

from __future__ import annotations

from pathlib import Path

from engines.machine import machine_name

TIMES = "times.json"


def times_file(bundle: Path) -> Path:
    """Of this machine."""
    return bundle / "local" / machine_name() / TIMES
