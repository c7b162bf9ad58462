"""Writes samples: a folder of pictures with a grid, or one archive of raw states."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from engines.apps.pictures.grid import Tile, draw_grid
from engines.apps.pictures.images import save_png
from engines.apps.pictures.rendering import IMAGES, INDICES, SAMPLES, Rendered
from engines.arrays import Int64
from engines.host.files import replacing
from engines.host.growing_array import GrowingArray

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

    def close(self) -> None:
        """Free what the output holds, finished or not."""
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

    def close(self) -> None:
        self._tiles.clear()


class NpzOutput:
    """Writes `samples.npz`: the arrays of a `RawRenderer` for all samples and, for conditional models, `rows` int64 [N]. Memory does not
    grow with the number of samples.

    Args:
        folder: folder to write to.
        rows: row of every sample, or None.
    """

    def __init__(self, folder: Path, rows: Int64 | None) -> None:
        self._path = folder / ARCHIVE
        self._rows = rows
        self._arrays: dict[str, GrowingArray] = {}

    def add(self, samples: Int64, rendered: Rendered) -> None:  # noqa: ARG002 (what was rendered includes the numbers)
        for name, array in rendered.items():
            if name not in self._arrays:
                self._arrays[name] = GrowingArray(self._path)
            self._arrays[name].add(array)

    def finish(self) -> tuple[str, ...]:
        if self._rows is not None:
            self._arrays["rows"] = GrowingArray(self._path)
            self._arrays["rows"].add(self._rows)
        with replacing(self._path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name in (SAMPLES, INDICES, "rows", IMAGES):
                if name in self._arrays:
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        self._arrays[name].write(member)
        return (self._path.name,)

    def close(self) -> None:
        for array in self._arrays.values():
            array.close()
