"""Pictures that a user gives: what they become, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engines.apps.pictures.images import to_pixels
from engines.apps.pictures.picture_files import check_picture, mask_state, picture_digest, picture_state, pictures_in
from engines.errors import UsageError

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (6, 4, 3), dtype=np.uint8)


def _png(folder: Path, image: Image.Image, **options: Any) -> Path:
    image.save(folder / "one.png", **options)
    return folder / "one.png"


def test_levels_become_states_and_back(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    state = picture_state(_png(tmp_path, Image.fromarray(levels)), (1, 16, 16))
    assert (str(state.dtype), state.shape) == ("float32", (1, 16, 16))
    assert (state.min(), state.max()) == (-1, 1)
    np.testing.assert_array_equal(to_pixels(state[None])[0], levels)


def test_colours_are_channels_in_order(tmp_path: Path) -> None:
    state = picture_state(_png(tmp_path, Image.fromarray(COLOUR)), (3, 6, 4))
    np.testing.assert_array_equal(to_pixels(state[None])[0], COLOUR)
    np.testing.assert_array_equal(picture_state(COLOUR, (3, 6, 4)), state)


def test_gray_stands_for_a_picture_in_colour(tmp_path: Path) -> None:
    path = _png(tmp_path, Image.fromarray(COLOUR[..., 0]))
    expected = picture_state(path, (1, 6, 4))
    for gray in (path, COLOUR[..., 0], COLOUR[..., :1]):
        np.testing.assert_array_equal(picture_state(gray, (3, 6, 4)), np.repeat(expected, 3, 0))


@pytest.mark.parametrize("size", [(6, 4), (3, 2), (4, 3), (1, 1)])
def test_a_mask_is_scaled_as_torch_takes_the_nearest_pixel(size: tuple[int, int]) -> None:
    mask = RANDOM.integers(0, 256, (6, 4), dtype=np.uint8)
    white = torch.from_numpy((mask / 255 >= 0.5).astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(white, size=size)[0].numpy()
    np.testing.assert_array_equal(mask_state(mask, (3, 6, 4), size), expected)


def test_files_of_a_folder_come_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert pictures_in(tmp_path) == (tmp_path / "a.PNG", tmp_path / "b.png")
    assert picture_digest(tmp_path / "b.png") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(COLOUR).convert("RGBA"), "mode RGBA"),
        (Image.fromarray(COLOUR[..., 0].astype(np.uint16)), "mode I;16"),
        (Image.fromarray(COLOUR[:5]), r"4 x 5 pixels\n  expected: 4 x 6 pixels"),
    ],
)
def test_pictures_that_would_be_changed_are_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        check_picture(_png(tmp_path, image), (3, 6, 4))


def test_transparency_is_refused(tmp_path: Path) -> None:
    path = _png(tmp_path, Image.fromarray(COLOUR), transparency=(1, 2, 3))
    with pytest.raises(UsageError, match="mode RGB with transparency"):
        check_picture(path, (3, 6, 4))


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = _png(tmp_path, Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:2000])
    check_picture(path, (3, 64, 64))
    with pytest.raises(UsageError, match="cannot be read"):
        picture_state(path, (3, 64, 64))
