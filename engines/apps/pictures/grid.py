"""A labelled grid of pictures, which shows many samples at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SMALLEST_TILE = 96
"""Pictures with a shorter side are enlarged by an integer factor, so that every pixel stays square."""

MARGIN = 10
LABEL_GAP = 3
FONT_SIZE = 12
PAPER, INK, FAINT_INK = "#ffffff", "#1a1a1a", "#808080"


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture.

    Attributes:
        pixels: [H, W] gray or [H, W, 3] RGB.
        label: text below the picture on the left.
        number: text below the picture on the right, in a fainter colour.
    """

    pixels: NDArray[np.uint8]
    label: str
    number: str


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels. A cell is a tile with its label and the margins to its right and below."""

    scale: int
    columns: int
    cell_width: int
    cell_height: int
    tile_height: int

    def corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(index, self.columns)
        return MARGIN + column * self.cell_width, MARGIN + row * self.cell_height


def draw_grid(tiles: Sequence[Tile], columns: int | None = None) -> Image.Image:
    """Draw tiles of one size as an RGB picture. Rows and columns are as nearly square as possible unless `columns` is given."""
    font = ImageFont.load_default(FONT_SIZE)
    layout = _layout(tiles, columns or math.ceil(math.sqrt(len(tiles))), font)
    rows = math.ceil(len(tiles) / layout.columns)
    grid = Image.new("RGB", (MARGIN + layout.columns * layout.cell_width, MARGIN + rows * layout.cell_height), PAPER)
    canvas = ImageDraw.Draw(grid)
    for index, tile in enumerate(tiles):
        left, top = layout.corner(index)
        grid.paste(_enlarged(tile, layout.scale), (left, top))
        baseline, right = top + layout.tile_height + LABEL_GAP, left + layout.cell_width - MARGIN
        canvas.text((left, baseline), tile.label, INK, font, anchor="la")
        canvas.text((right, baseline), tile.number, FAINT_INK, font, anchor="ra")
    return grid


def _layout(tiles: Sequence[Tile], columns: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> _Layout:
    height, width = tiles[0].pixels.shape[:2]
    scale = math.ceil(SMALLEST_TILE / min(height, width))
    text_width = max(math.ceil(font.getlength(f"{tile.label}  {tile.number}")) for tile in tiles)
    return _Layout(
        scale=scale,
        columns=columns,
        cell_width=max(scale * width, text_width) + MARGIN,
        cell_height=scale * height + LABEL_GAP + FONT_SIZE + MARGIN,
        tile_height=scale * height,
    )


def _enlarged(tile: Tile, scale: int) -> Image.Image:
    height, width = tile.pixels.shape[:2]
    return Image.fromarray(tile.pixels).resize((scale * width, scale * height), Image.Resampling.NEAREST)
