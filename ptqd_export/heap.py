"""Memory that is free but not given back."""

from __future__ import annotations

import ctypes
import sys

from engines.backends.onnxruntime import release_activations


def trim_heap() -> None:
    """Give free memory back to the system. ONNX Runtime keeps what its largest call took, the C library what lies between blocks that are
    still in use: after a large network that is gigabytes, which the next stage would come on top of.
    """
    release_activations()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's own
    if trim is not None:
        trim(0)
