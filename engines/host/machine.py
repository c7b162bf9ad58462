"""The machine that measured figures belong to."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_features__  # type: ignore[import-not-found]  # what `numpy.show_runtime` prints


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> frozenset[str]:
    """What the processor can do, by the system's names; empty where the system does not say."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return frozenset() if found is None else frozenset(found[1].split())


def told_instructions() -> frozenset[str]:
    """What the processor tells this process that it can do, by numpy's names: emulators hide from a process what the system lists."""
    return frozenset(name for name, there in __cpu_features__.items() if there)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_name() -> str:
    """Processor and cores as a folder name."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", processor()).strip("-").lower()
    return f"{plain}-{cores()}-cores"
