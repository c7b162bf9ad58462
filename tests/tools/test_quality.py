"""Every way to run a bundle, what is said of its samples, and of its steps; on a few samples of the small bundle."""

from __future__ import annotations

import math
from io import StringIO
from statistics import fmean, median
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from tools import quality
from tools.quality import SEED, Row, Study, psnrs, quality_table, step_table

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

SAMPLES, BATCH = 4, 3


@pytest.fixture(scope="module")
def rows(digits: Digits) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "BATCH", BATCH)
        return list(Study(Bundle.open(digits.folder), SAMPLES).rows())


def lines_of(table: Table) -> list[list[str]]:
    """The cells of every line."""
    console = Console(record=True, width=120, file=StringIO())
    console.print(table)
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if line.startswith("│")]


def images(seed: int) -> Float32:
    return np.random.default_rng(seed).uniform(-1.3, 1.3, size=(5, 1, 16, 16)).astype(np.float32)


def expected_psnrs(samples: Float32, reference: Float32) -> tuple[float, float]:
    """Pooled and median, image by image and pixel by pixel, in Python's own floats."""
    errors = []
    for sample, other in zip(samples.tolist(), reference.tolist(), strict=True):
        pixels = zip(np.ravel(sample), np.ravel(other), strict=True)
        squares = [(max(-1.0, min(1.0, a)) - max(-1.0, min(1.0, b))) ** 2 for a, b in pixels]
        errors.append(math.fsum(squares) / len(squares))
    return 10 * math.log10(4 / fmean(errors)), median(10 * math.log10(4 / error) for error in errors)


def cells(samples: Float32, reference: Float32) -> list[str]:
    return [f"{figure:.1f} dB" for figure in expected_psnrs(samples, reference)]


def test_psnrs_are_of_what_is_seen_of_the_images() -> None:
    assert list(psnrs(images(0), images(1))) == cells(images(0), images(1))


def test_psnrs_of_known_errors() -> None:
    """0.02 on a range of 2 is 40 dB, 0.2 is 20 dB; three images of four have the smaller error."""
    reference = np.zeros((4, 1, 16, 16), dtype=np.float32)
    errors = np.array([0.02, 0.02, 0.02, 0.2], dtype=np.float32).reshape(4, 1, 1, 1)
    assert psnrs(reference + errors, reference) == ("25.9 dB", "40.0 dB")  # 4 / ((3 * 0.0004 + 0.04) / 4)
    assert psnrs(reference, reference) == ("identical", "identical")


def test_rows_are_every_way_to_run_the_bundle(digits: Digits, rows: list[Row]) -> None:
    ways = [(precision, correction) for precision in ("schedule", "w8a8", "w4a8", "w2a8") for correction in ("off", "on")]
    assert [(row.precision, row.correction) for row in rows] == [("fp32", "-"), *ways]
    pieces = np.split(np.arange(SAMPLES, dtype=np.int64), [BATCH])
    expected = [digits.sample("w2a8", SEED, numbers, numbers) for numbers in pieces]
    np.testing.assert_array_equal(rows[-1].images, np.concatenate(expected))


def test_correction_brings_the_lowest_precision_nearer_to_full_precision(rows: list[Row]) -> None:
    by_way = {(row.precision, row.correction): expected_psnrs(row.images, rows[0].images)[0] for row in rows[1:]}
    assert by_way["w2a8", "on"] > by_way["w2a8", "off"] + 1


def test_table_shows_the_figures_of_every_row(rows: list[Row]) -> None:
    lines = lines_of(quality_table(rows))
    assert [line[:2] for line in lines] == [[row.precision, row.correction] for row in rows]
    assert lines[0][3:5] == ["-", "-"]
    for row, line in zip(rows[1:], lines[1:], strict=True):
        assert line[3:5] == cells(row.images, rows[0].images)
        assert line[5:] == [f"{row.images.astype(float).mean():+.3f}", f"{row.images.astype(float).var():.3f}"]


def test_table_of_steps_shows_what_the_build_measured(digits: Digits) -> None:
    names = ["w8a8", "w4a8", "w2a8"]
    lines = lines_of(step_table(Bundle.open(digits.folder)))
    records = [digits.statistics(name)["steps"] for name in names]
    assert len(lines) == len(records[0]) == 20
    for i, (line, step) in enumerate(zip(lines, zip(*records, strict=True), strict=True)):
        assert line == [str(i), f"{950 - 50 * i}", *(f"{one['snr_db']:.1f} / {one['corrected_snr_db']:.1f}" for one in step)]
