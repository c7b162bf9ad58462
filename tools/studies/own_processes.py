"""Find descendants of this process by title, for proofs that kill one of them."""

from __future__ import annotations

import os
from pathlib import Path


def own_processes(title: str) -> list[int]:
    """Return the process ids of this process's descendants whose title starts with `title`."""
    parents = {int(path.parent.name): _parent(path) for path in Path("/proc").glob("[0-9]*/stat")}
    return [process for process in parents if _descends(process, parents) and _title(process).startswith(title)]


def _descends(process: int | None, parents: dict[int, int | None]) -> bool:
    while process is not None and process != os.getpid():
        process = parents.get(process)
    return process is not None


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None  # the process has ended


def _title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""
