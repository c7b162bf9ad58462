"""Outputs take batches as they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.apps.pictures.rendering import PngRenderer, RawRenderer
from engines.apps.sample.sample_output import NpzOutput, PngOutput
from engines.arrays import Float32
from engines.networks.image_decoder import Decoder

STATES = np.linspace(-1, 1, 5 * 4, dtype=np.float32).reshape(5, 1, 2, 2)
NUMBERS = np.array([8, 9, 10, 123456789, 123456790])


def test_pictures_are_there_after_every_batch_and_the_grid_at_the_end(tmp_path: Path) -> None:
    output, render = PngOutput(tmp_path, ["class 1"] * 64), PngRenderer(Decoder())
    output.add(NUMBERS[:2], render(NUMBERS[:2], STATES[:2]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000008.png", "00000009.png"]
    output.add(NUMBERS[2:], render(NUMBERS[2:], STATES[2:]))
    assert output.finish() == ("00000008.png", "00000009.png", "00000010.png", "123456789.png", "123456790.png")
    assert (tmp_path / "grid.png").is_file()
    with Image.open(tmp_path / "123456790.png") as image:
        assert np.asarray(image).tolist() == [[215, 228], [242, 255]]


def test_tiles_beyond_the_grid_are_not_kept(tmp_path: Path) -> None:
    output, render = PngOutput(tmp_path, ["class 1"] * 64), PngRenderer(Decoder())
    for first in range(0, 100, 5):
        output.add(np.arange(first, first + 5), render(np.arange(first, first + 5), STATES))
    assert len(output._tiles) == 64


def test_archive_of_latents_holds_what_the_pictures_show(tmp_path: Path) -> None:
    class Halved(Decoder):
        def __call__(self, states: Float32) -> Float32:
            return np.asarray(states / 2, dtype=np.float32)

    output, render = NpzOutput(tmp_path, None), RawRenderer(Halved())
    output.add(NUMBERS[:2], render(NUMBERS[:2], STATES[:2]))
    output.add(NUMBERS[2:], render(NUMBERS[2:], STATES[2:]))
    output.finish()
    output.close()
    with np.load(tmp_path / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["samples"], STATES)
        assert archive["images"].dtype == np.uint8
        assert archive["images"][[0, -1]].ravel().tolist() == [64, 70, 77, 84, 171, 178, 185, 191]


@pytest.mark.parametrize("rows", [None, np.array([2, 2, 0, 1, 0])])
def test_archive_joins_the_batches(tmp_path: Path, rows: np.ndarray | None) -> None:
    output, render = NpzOutput(tmp_path, rows), RawRenderer(None)
    output.add(NUMBERS[:2], render(NUMBERS[:2], STATES[:2]))
    output.add(NUMBERS[2:], render(NUMBERS[2:], STATES[2:]))
    assert list(tmp_path.iterdir()) == []
    assert output.finish() == ("samples.npz",)
    output.close()
    with np.load(tmp_path / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["samples"], STATES)
        np.testing.assert_array_equal(archive["indices"], NUMBERS)
        assert ("rows" in archive.files) is (rows is not None)
        if rows is not None:
            np.testing.assert_array_equal(archive["rows"], rows)
