"""Returns free memory to the system."""

from __future__ import annotations

from engines.backends.onnxruntime.onnxruntime_backend import release_activations
from engines.host.heap import release_free_pages


def trim_heap() -> None:
    """Return free memory to the system.

    ONNX Runtime keeps the memory of its largest call, and the C library keeps memory between blocks that are still in use. After a large
    network that is gigabytes, which would add to the memory of the next stage.
    """
    release_activations()
    release_free_pages()
