"""The engine file of a graph, kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CachedEngine:
    """An engine file.

    Attributes:
        path: path of the engine file.
        seconds: seconds spent building it now, or waiting for another process to build it.
        from_cache: whether the engine existed already.
    """

    path: Path
    seconds: float
    from_cache: bool
