"""Describe the machine that measurements were made on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_features__  # type: ignore[import-not-found]  # what `numpy.show_runtime` prints

ANY_MACHINE = "any-machine"
"""Name of the folder under `local/` for what every machine can use."""


def processor() -> str:
    """Return the processor's name as the system reports it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> frozenset[str]:
    """Return the processor's instruction-set flags under the system's names; empty if the system does not list them."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return frozenset() if found is None else frozenset(found[1].split())


def told_instructions() -> frozenset[str]:
    """Return the instruction sets that this process detects, under numpy's names: an emulator may hide some that the system lists."""
    return frozenset(name for name, there in __cpu_features__.items() if there)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_name() -> str:
    """Return the processor's name and core count as a folder name."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", processor()).strip("-").lower()
    return f"{plain}-{cores()}-cores"
