"""The demo's picture: every row with its label, every pixel a square."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tools.labelled_rows import GAP, LABEL_WIDTH, SCALE, draw_rows

SIZE, SAMPLES = 5, 3


def rows() -> dict[str, NDArray[np.uint8]]:
    pixels = np.random.default_rng(0).integers(0, 255, size=(2, SAMPLES, SIZE, SIZE, 3), dtype=np.uint8)
    return {"float32": pixels[0], "W4A8\nuncorrected": pixels[1]}


def test_every_pixel_is_a_square_in_the_line_of_its_row() -> None:
    drawn, pitch = np.asarray(draw_rows(rows())), SCALE * SIZE + GAP
    assert drawn.shape == (2 * pitch + GAP, LABEL_WIDTH + SAMPLES * pitch + GAP, 3)
    for i, pixels in enumerate(rows().values()):
        for j, sample in enumerate(pixels):
            top, left = GAP + i * pitch, LABEL_WIDTH + j * pitch
            tile = drawn[top : top + SCALE * SIZE, left : left + SCALE * SIZE]
            np.testing.assert_array_equal(tile, np.kron(sample, np.ones((SCALE, SCALE, 1), dtype=np.uint8)))


def test_a_label_lies_in_the_margin_of_its_row_alone() -> None:
    blank = np.asarray(draw_rows({"": rows()["float32"], " ": rows()["float32"]}))
    drawn = np.asarray(draw_rows({"": rows()["float32"], "corrected": rows()["float32"]}))
    written = np.argwhere((drawn != blank).any(axis=2))
    assert len(written) > 0
    assert (written[:, 1] < LABEL_WIDTH).all()
    assert (written[:, 0] >= SCALE * SIZE + GAP).all()
