"""Converts states to pictures: [-1, 1] to 8-bit pixels, one channel to gray, three channels to RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.arrays import Float32
from engines.errors import UsageError
from engines.host.files import replacing

COLOR_CHANNELS = (1, 3)


def is_drawable(shape: tuple[int, ...]) -> bool:
    """Whether states of this shape [channels, ...] are pictures: two-dimensional, and gray or RGB."""
    return len(shape) == 3 and shape[0] in COLOR_CHANNELS


def check_drawable(shape: tuple[int, ...], mend: str = "use --format npz, which keeps the samples as they are") -> None:
    """Refuse states [channels, ...] that are not pictures.

    Args:
        shape: shape of one state.
        mend: how to get the samples all the same.

    Raises:
        UsageError: the states are not two-dimensional, or not gray or RGB.
    """
    if not is_drawable(shape):
        raise UsageError(
            "The samples of this model are not pictures.",
            found=f"samples of shape {list(shape)}",
            expected="[1, height, width] (gray) or [3, height, width] (RGB)",
            mend=mend,
        )


def to_pixels(states: Float32) -> NDArray[np.uint8]:
    """Convert states [N, 1 or 3, H, W] to pixels [N, H, W] or [N, H, W, 3]; values beyond [-1, 1] are clipped."""
    pixels = picture_array(states)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def picture_array(states: Float32) -> NDArray[np.uint8]:
    """Convert states [N, 1 or 3, H, W] to pixels [N, H, W, 1 or 3]; values beyond [-1, 1] are clipped."""
    return np.moveaxis(to_levels(states), 1, -1)


def to_levels(states: Float32) -> NDArray[np.uint8]:
    """Convert states to the 256 levels of a display, with the axes unchanged; values beyond [-1, 1] are clipped."""
    return np.asarray(np.rint(255 * (states / 2 + 0.5).clip(0, 1)), dtype=np.uint8)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
