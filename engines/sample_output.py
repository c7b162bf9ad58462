"""Where samples go: a folder of pictures with a grid, or one archive of raw states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.arrays import Float32, Int64
from engines.decoder import Decoder
from engines.files import replacing
from engines.grid import Tile, draw_grid
from engines.images import save_png, to_levels, to_pixels

GRID_TILES = 64
GRID = "grid.png"
ARCHIVE = "samples.npz"
IMAGES = "images"


class SampleOutput(Protocol):
    """Takes samples batch by batch, in the order of their numbers."""

    def add(self, samples: Int64, states: Float32) -> None:
        """Take the states [B, C, ...] of the samples with numbers [B]."""
        ...

    def finish(self) -> tuple[str, ...]:
        """Write what is left to write; the names of the files that hold the samples."""
        ...


class PngOutput:
    """`00000032.png` is sample 32, and `grid.png` shows the first ones; memory does not grow with the number of samples.

    Args:
        folder: to write to.
        decoder: from states to images.
        labels: of the grid's tiles, one for each of the first `GRID_TILES` samples.
    """

    def __init__(self, folder: Path, decoder: Decoder, labels: Sequence[str]) -> None:
        self._folder = folder
        self._decoder = decoder
        self._labels = labels
        self._tiles: list[Tile] = []
        self._files: list[str] = []

    def add(self, samples: Int64, states: Float32) -> None:
        for n, pixels in zip(samples.tolist(), to_pixels(self._decoder(states)), strict=True):
            self._files.append(f"{n:08d}.png")
            save_png(Image.fromarray(pixels), self._folder / self._files[-1])
            if len(self._tiles) < GRID_TILES:
                self._tiles.append(Tile(pixels, self._labels[len(self._tiles)], f"#{n}"))

    def finish(self) -> tuple[str, ...]:
        save_png(draw_grid(self._tiles), self._folder / GRID)
        return tuple(self._files)


class NpzOutput:
    """`samples.npz` holds `samples` float32 [N, C, ...], the states as the chain ends with them, and `indices` int64 [N]; of conditional
    models `rows` int64 [N], and of latent models `images` uint8 [N, C, H, W], what the pictures would show.

    Args:
        folder: to write to.
        rows: of every sample, or None.
        decoder: of a latent model, or None.
    """

    def __init__(self, folder: Path, rows: Int64 | None, decoder: Decoder | None = None) -> None:
        self._path = folder / ARCHIVE
        self._rows = rows
        self._decoder = decoder
        self._indices: list[Int64] = []
        self._states: list[Float32] = []
        self._images: list[NDArray[np.uint8]] = []

    def add(self, samples: Int64, states: Float32) -> None:
        self._indices.append(samples)
        self._states.append(states)
        if self._decoder is not None:
            self._images.append(to_levels(self._decoder(states)))

    def finish(self) -> tuple[str, ...]:
        rows: dict[str, Any] = {} if self._rows is None else {"rows": self._rows}
        images: dict[str, Any] = {IMAGES: np.concatenate(self._images)} if self._images else {}
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            np.savez(file, samples=np.concatenate(self._states), indices=np.concatenate(self._indices), **rows, **images)
        return (self._path.name,)
