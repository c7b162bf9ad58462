"""Memory that is free but not given back."""

from __future__ import annotations

from engines.backends.onnxruntime.onnxruntime_backend import release_activations
from engines.host.heap import release_free_pages


def trim_heap() -> None:
    """Give free memory back to the system. ONNX Runtime keeps what its largest call took, the C library what lies between blocks that are
    still in use: after a large network that is gigabytes, which the next stage would come on top of.
    """
    release_activations()
    release_free_pages()
