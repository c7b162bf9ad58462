"""Return free heap memory to the operating system."""

from __future__ import annotations

import ctypes
import sys


def release_free_pages() -> None:
    """Return free pages to the system: the C library keeps those that lie between blocks still in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # only glibc has it
    if trim is not None:
        trim(0)
