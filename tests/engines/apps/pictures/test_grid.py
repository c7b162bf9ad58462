"""The grid: where tiles lie, that pixels stay squares, that labels are legible and disturb nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engines.apps.pictures.grid import MARGIN, Tile, draw_grid

WHITE = (255, 255, 255)


def gray(level: int, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    return np.full((height, width), level, dtype=np.uint8)


def boxes(grid: Image.Image, level: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of this gray."""
    ys, xs = np.nonzero((np.asarray(grid) == level).all(axis=-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_tiles_fill_rows_from_the_left_and_do_not_touch() -> None:
    levels = [40, 60, 80, 100, 120]
    grid = draw_grid([Tile(gray(level), "", "") for level in levels])
    assert grid.mode == "RGB"
    found = [boxes(grid, level) for level in levels]
    assert [(right - left, bottom - top) for left, top, right, bottom in found] == [(96, 96)] * 5
    lefts, tops = zip(*[box[:2] for box in found], strict=True)
    assert lefts[0] == lefts[3] == MARGIN
    assert lefts[1] == lefts[4]
    assert len(set(lefts)) == 3
    assert tops[0] == tops[1] == tops[2] == MARGIN
    assert tops[3] == tops[4]
    assert lefts[1] - lefts[0] == lefts[2] - lefts[1] == 96 + MARGIN
    assert tops[3] - tops[0] > 96 + MARGIN


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (20, 5), (64, 8)])
def test_grid_is_as_square_as_the_number_allows(count: int, columns: int) -> None:
    grid = draw_grid([Tile(gray(0), "", "")] * count)
    assert grid.width == MARGIN + columns * (96 + MARGIN)


@pytest.mark.parametrize(
    ("height", "width", "tile"), [(16, 16, (96, 96)), (8, 16, (96, 192)), (64, 64, (128, 128)), (200, 100, (200, 100))]
)
def test_small_pictures_grow_by_a_whole_factor_and_large_ones_stay(height: int, width: int, tile: tuple[int, int]) -> None:
    left, top, right, bottom = boxes(draw_grid([Tile(gray(90, height, width), "", "")]), 90)
    assert (bottom - top, right - left) == tile


def test_every_pixel_becomes_one_square_of_its_own_color() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, size=(16, 16, 3), dtype=np.uint8)
    grid = np.asarray(draw_grid([Tile(pixels, "", "")]))[MARGIN : MARGIN + 96, MARGIN : MARGIN + 96]
    np.testing.assert_array_equal(grid, pixels.repeat(6, axis=0).repeat(6, axis=1))


def test_labels_are_below_their_tiles_and_change_nothing_else() -> None:
    plain, labelled = (np.asarray(draw_grid([Tile(gray(90), *texts)] * 4)) for texts in (("", ""), ("class 7", "#32")))
    assert plain.shape == labelled.shape
    ys, xs = np.nonzero((plain != labelled).any(axis=-1))
    below = set(range(MARGIN + 96, MARGIN + 96 + 3 + 12 + 3))
    second = min(ys[ys > max(below)]) - min(ys)
    assert set(ys.tolist()) <= below | {y + second for y in below}
    assert (labelled[ys, xs] < 160).any()
    left_half, right_half = xs[xs < MARGIN + 48], xs[(xs >= MARGIN + 48) & (xs < MARGIN + 96)]
    assert len(left_half) > 30
    assert len(right_half) > 20


def test_long_labels_widen_the_cells_and_never_run_into_each_other() -> None:
    narrow = draw_grid([Tile(gray(0), "class 1", "#1")] * 4)
    wide = draw_grid([Tile(gray(0), "class 123456789", "#9876543210")] * 4)
    assert wide.width > narrow.width
    strip = np.asarray(wide)[MARGIN + 96 + 3 : MARGIN + 96 + 3 + 12, MARGIN : wide.width // 2 - MARGIN]
    inked = np.flatnonzero((strip != WHITE).any(axis=(0, 2)))
    assert np.diff(inked).max() > 4


def test_paper_is_white() -> None:
    grid = draw_grid([Tile(gray(0), "class 7", "#32")] * 3)
    corners = [(0, 0), (grid.width - 1, 0), (0, grid.height - 1), (grid.width - 1, grid.height - 1)]
    assert {grid.getpixel(corner) for corner in corners} == {WHITE}
