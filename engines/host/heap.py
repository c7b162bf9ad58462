"""Memory that is free but not given back."""

from __future__ import annotations

import ctypes
import sys


def release_free_pages() -> None:
    """Give free pages back to the system: the C library keeps what lies between blocks that are still in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's own
    if trim is not None:
        trim(0)
