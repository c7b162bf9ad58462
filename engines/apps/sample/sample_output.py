"""Writes samples: a folder of pictures with a grid, or one archive of raw states."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from engines.apps.pictures.grid import Tile, draw_grid
from engines.apps.pictures.images import save_png
from engines.apps.pictures.rendering import IMAGES, INDICES, SAMPLES, Rendered
from engines.arrays import Int64
from engines.host.files import replacing

GRID_TILES = 64
GRID = "grid.png"
ARCHIVE = "samples.npz"


class SampleOutput(Protocol):
    """Takes samples batch by batch, in order of sample number."""

    def add(self, samples: Int64, rendered: Rendered) -> None:
        """Add what was rendered of the samples with numbers [B]."""
        ...

    def finish(self) -> tuple[str, ...]:
        """Write what remains; return the names of the files that hold the samples."""
        ...


class PngOutput:
    """Writes sample 32 as `00000032.png`, and the first samples as `grid.png`. Memory does not grow with the number of samples.

    Args:
        folder: folder to write to.
        labels: labels of the grid's tiles, one for each of the first `GRID_TILES` samples.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._folder = folder
        self._labels = labels
        self._tiles: list[Tile] = []
        self._files: list[str] = []

    def add(self, samples: Int64, rendered: Rendered) -> None:
        for n, (name, content) in zip(samples.tolist(), rendered.items(), strict=True):
            self._files.append(name)
            with replacing(self._folder / name) as temporary:
                temporary.write_bytes(content.tobytes())
            if len(self._tiles) < GRID_TILES:
                pixels = np.asarray(Image.open(io.BytesIO(content.tobytes())))
                self._tiles.append(Tile(pixels, self._labels[len(self._tiles)], f"#{n}"))

    def finish(self) -> tuple[str, ...]:
        save_png(draw_grid(self._tiles), self._folder / GRID)
        return tuple(self._files)


class NpzOutput:
    """Writes `samples.npz`: the arrays of a `RawRenderer` for all samples and, for conditional models, `rows` int64 [N].

    Args:
        folder: folder to write to.
        rows: row of every sample, or None.
    """

    def __init__(self, folder: Path, rows: Int64 | None) -> None:
        self._path = folder / ARCHIVE
        self._rows = rows
        self._batches: list[Rendered] = []

    def add(self, samples: Int64, rendered: Rendered) -> None:  # noqa: ARG002 (what was rendered includes the numbers)
        self._batches.append(rendered)

    def finish(self) -> tuple[str, ...]:
        rows: dict[str, Any] = {} if self._rows is None else {"rows": self._rows}
        images: dict[str, Any] = {IMAGES: self._joined(IMAGES)} if IMAGES in self._batches[0] else {}
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            np.savez(file, samples=self._joined(SAMPLES), indices=self._joined(INDICES), **rows, **images)
        return (self._path.name,)

    def _joined(self, name: str) -> Any:
        return np.concatenate([batch[name] for batch in self._batches])
