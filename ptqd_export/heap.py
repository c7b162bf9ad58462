"""Memory that is free but not given back."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Give free pages back to the system. The C library keeps what lies between blocks that are still in use: after a graph or a runtime of
    a large network that is gigabytes, which the next stage would come on top of.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's own
    if trim is not None:
        trim(0)
