"""The demo's table says what was sampled, and its picture what the table says."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.host.machine import processor
from tools.demo import colour_error, demo_table

if TYPE_CHECKING:
    from tests.tools.conftest import Digits


def shifted(by: tuple[float, float, float]) -> Float32:
    """Black images of 4 x 4 pixels with their colour shifted by levels of 0 to 255."""
    return np.full((2, 3, 4, 4), -1, dtype=np.float32) + np.float32(2 / 255) * np.array(by, dtype=np.float32)[:, None, None]


def test_colour_error_of_a_known_shift_in_levels() -> None:
    assert colour_error(shifted((3, 0, 4)), shifted((0, 0, 0))) == pytest.approx(5, abs=1e-4)


def test_colour_error_is_of_what_is_seen() -> None:
    assert colour_error(shifted((-30, -40, 0)), shifted((0, 0, 0))) == 0


def test_colour_error_does_not_cancel_between_images() -> None:
    images = np.concatenate([shifted((6, 0, 0))[:1], shifted((0, 0, 0))[:1]])
    assert colour_error(images, shifted((3, 0, 0))) == pytest.approx(3, abs=1e-4)


def test_colour_error_ignores_what_moves_within_an_image() -> None:
    images = shifted((9, 9, 9))
    images[:, :, 0], images[:, :, 1] = shifted((0, 0, 0))[:, :, 0], shifted((18, 18, 18))[:, :, 0]
    assert colour_error(images, shifted((9, 9, 9))) == pytest.approx(0, abs=1e-4)


def test_table_has_a_row_for_every_precision_and_names_the_machine(digits: Digits) -> None:
    reference = shifted((0, 0, 0))
    drawn = {"w8a8": (shifted((3, 0, 4)), shifted((0, 0, 1))), "w4a8": (shifted((30, 0, 40)), shifted((0, 5, 0)))}
    console = Console(record=True, width=80, file=StringIO())
    console.print(demo_table(Bundle.open(digits.folder), reference, drawn))
    text = console.export_text()
    assert f"2 samples, the same seeds, on {processor()}" in text
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    times = digits.json(f"local/{next((digits.folder / 'local').glob('*/times.json')).parent.name}/times.json")["milliseconds_a_step"]
    names = ["float32", "W8A8 uncorrected", "W8A8 corrected", "W4A8 uncorrected", "W4A8 corrected"]
    assert [line[0] for line in lines] == names
    assert lines[0][4:] == ["-", "-"]
    assert lines[4][3] == f"{times['w4a8']:.1f} ms, {times['fp32'] / times['w4a8']:.2f}x"
    assert [line[4:] for line in lines[1:3]] == [["38.9 dB", "5.0"], ["52.9 dB", "1.0"]]
    assert [line[5] for line in lines[3:]] == ["50.0", "5.0"]
