"""The demo's table and picture, on a few samples of the small bundle."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from engines.arrays import Float32
from engines.bundle import Bundle
from tools import demo
from tools.demo import Row

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

SAMPLES, SHOWN = 4, 3
MARGIN, TILE, TEXT = 10, 96, 15
"""Pixels of the grid: around every tile, a side of a tile (16 pixels six times enlarged), a label and the gap above it."""


@pytest.fixture(scope="module")
def rows(digits: Digits) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SAMPLES", SAMPLES)
        return demo._sample(Bundle.open(digits.folder))


def images(seed: int) -> Float32:
    return np.random.default_rng(seed).uniform(-1.3, 1.3, size=(5, 1, 16, 16)).astype(np.float32)


def psnr(samples: Float32, reference: Float32) -> float:
    """Image by image and pixel by pixel, in Python's own floats."""
    figures = []
    for sample, other in zip(samples.tolist(), reference.tolist(), strict=True):
        pixels = zip(np.ravel(sample), np.ravel(other), strict=True)
        squares = [(max(-1.0, min(1.0, a)) - max(-1.0, min(1.0, b))) ** 2 for a, b in pixels]
        figures.append(20 * math.log10(2 / math.sqrt(math.fsum(squares) / len(squares))))
    return math.fsum(figures) / len(figures)


def test_psnr_is_the_mean_over_images_of_what_is_seen_of_them() -> None:
    assert demo._psnr(images(0), images(1)) == pytest.approx(psnr(images(0), images(1)), rel=1e-5)


def test_psnr_of_a_known_error() -> None:
    """0.02 on a range of 2 is 40 dB, 0.2 is 20 dB; beyond the range nothing is seen."""
    reference = np.zeros((2, 1, 16, 16), dtype=np.float32)
    reference[:, :, 0] = 1
    samples = reference + np.array([0.02, 0.2], dtype=np.float32).reshape(2, 1, 1, 1)
    seen = 15 / 16
    assert demo._psnr(samples, reference) == pytest.approx(30 - 10 * math.log10(seen), abs=1e-4)


def test_rows_are_every_way_to_run_the_bundle(digits: Digits, rows: list[Row]) -> None:
    ways = [(precision, correction) for precision in ("schedule", "w8a8", "w4a8", "w2a8") for correction in ("off", "on")]
    assert [(row.precision, row.correction) for row in rows] == [("fp32", "-"), *ways]
    numbers = np.arange(SAMPLES, dtype=np.int64)
    np.testing.assert_array_equal(rows[-1].samples, digits.sample("w2a8", demo.SEED, numbers, numbers))


def test_correction_brings_the_lowest_precision_nearer_to_full_precision(rows: list[Row]) -> None:
    by_way = {(row.precision, row.correction): psnr(row.samples, rows[0].samples) for row in rows[1:]}
    assert by_way["w2a8", "on"] > by_way["w2a8", "off"] + 1


def test_table_shows_the_figures_of_every_row(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SAMPLES", SAMPLES)
    console = Console(record=True, width=120, file=StringIO())
    demo._print(rows, console)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if line.startswith("│")]
    assert [line[:2] for line in lines] == [[row.precision, row.correction] for row in rows]
    assert lines[0][3] == "-"
    for row, line in zip(rows[1:], lines[1:], strict=True):
        assert line[3] == f"{psnr(row.samples, rows[0].samples):.1f} dB"
        assert line[4:] == [f"{row.samples.astype(float).mean():+.3f}", f"{row.samples.astype(float).var():.3f}"]


def test_comparison_picture_has_one_line_a_row_and_one_column_a_sample(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SHOWN", SHOWN)
    shown = [rows[0], *rows[-2:]]
    demo._draw(shown, tmp_path / "comparison.png")
    with Image.open(tmp_path / "comparison.png") as picture:
        pixels = np.asarray(picture)
    column = max(TILE, math.ceil(ImageFont.load_default(12).getlength(f"full precision  #{SHOWN - 1}"))) + MARGIN
    line = TILE + TEXT + MARGIN
    assert pixels.shape == (MARGIN + 3 * line, MARGIN + SHOWN * column, 3)
    for i, row in enumerate(shown):
        for j in range(SHOWN):
            top, left = MARGIN + i * line, MARGIN + j * column
            expected = np.rint(127.5 * (row.samples[j, 0].clip(-1, 1) + 1))
            np.testing.assert_allclose(pixels[top : top + TILE : 6, left : left + TILE : 6, 0], expected, atol=1)
