"""States to pixels, by hand-made states, and PNG files read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.apps.pictures.images import check_drawable, save_png, to_pixels
from engines.errors import UsageError


def test_gray_states_map_minus_one_to_black_and_one_to_white() -> None:
    states = np.array([-1, 1, 0, -7, 3, 0.5], dtype=np.float32).reshape(1, 1, 2, 3)
    pixels = to_pixels(states)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[0, 255, 128], [0, 255, 191]]]


def test_values_between_two_levels_are_rounded() -> None:
    levels = np.arange(256, dtype=np.float32)
    for shift in (-0.4, 0.0, 0.4):
        states = ((levels + shift) / 255 * 2 - 1).reshape(1, 1, 16, 16).astype(np.float32)
        np.testing.assert_array_equal(to_pixels(states).ravel(), levels)


def test_three_channels_become_the_last_axis() -> None:
    states = np.zeros((2, 3, 4, 5), dtype=np.float32)
    states[1, 0, 2, 3], states[1, 1, 2, 3], states[1, 2, 2, 3] = 1, -1, 0.5
    pixels = to_pixels(states)
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels[1, 2, 3].tolist() == [255, 0, 191]


@pytest.mark.parametrize(("states", "mode"), [(np.zeros((1, 1, 4, 5)), "L"), (np.full((1, 3, 4, 5), 0.2), "RGB")])
def test_png_reads_back_as_it_was(tmp_path: Path, states: np.ndarray, mode: str) -> None:
    (pixels,) = to_pixels(states.astype(np.float32))
    save_png(Image.fromarray(pixels), tmp_path / "new" / "x.png")
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (5, 4))
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 16)])
def test_gray_and_rgb_can_be_drawn(shape: tuple[int, ...]) -> None:
    check_drawable(shape)


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 8, 8), (1, 8), (1, 8, 8, 8)])
def test_other_samples_are_refused_and_npz_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        check_drawable(shape)
    assert str(list(shape)) in str(caught.value)
    assert "--format npz" in str(caught.value)
