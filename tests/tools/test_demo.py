"""The demo's picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from tools import demo
from tools.quality import Row

SHOWN = 3
MARGIN, TILE, TEXT = 10, 96, 15
"""Pixels of the grid: around every tile, a side of a tile (16 pixels six times enlarged), a label and the gap above it."""


def test_comparison_picture_has_one_line_a_row_and_one_column_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SHOWN", SHOWN)
    images = np.random.default_rng(0).uniform(-1.3, 1.3, size=(3, SHOWN + 1, 1, 16, 16)).astype(np.float32)
    shown = [Row("w2a8", correction, drawn) for correction, drawn in zip(("-", "off", "on"), images, strict=True)]
    demo._draw(shown, tmp_path / "comparison.png")
    with Image.open(tmp_path / "comparison.png") as picture:
        pixels = np.asarray(picture)
    column = max(TILE, math.ceil(ImageFont.load_default(12).getlength(f"full precision  #{SHOWN - 1}"))) + MARGIN
    line = TILE + TEXT + MARGIN
    assert pixels.shape == (MARGIN + 3 * line, MARGIN + SHOWN * column, 3)
    for i, row in enumerate(shown):
        for j in range(SHOWN):
            top, left = MARGIN + i * line, MARGIN + j * column
            expected = np.rint(127.5 * (row.images[j, 0].clip(-1, 1) + 1))
            np.testing.assert_allclose(pixels[top : top + TILE : 6, left : left + TILE : 6, 0], expected, atol=1)
