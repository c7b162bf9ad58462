"""An engine that was made from a graph and is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CachedEngine:
    """An engine file.

    Attributes:
        path: of the engine.
        seconds: that it took to build just now, or that it took to wait for whoever built it.
        from_cache: somebody built it before.
    """

    path: Path
    seconds: float
    from_cache: bool
