"""How many images are decoded at a time."""

from __future__ import annotations

import pytest

from ptqd_export.build.decoding import images_at_a_time


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((3, 512, 512), 1), ((3, 1024, 1024), 1), ((3, 256, 256), 4), ((3, 8, 8), 64), ((1, 512, 256), 2), ((3, 384, 384), 1)],
)
def test_images_fill_no_more_memory_than_one_of_512_pixels_squared(shape: tuple[int, ...], batch: int) -> None:
    assert images_at_a_time(shape) == batch
