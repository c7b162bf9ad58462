"""Sizes of images: [height, width] in pixels, written `1024x1024`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from engines.errors import UsageError

ImageSize: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

WRITTEN = r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})"


def size_name(size: Sequence[int]) -> str:
    """Return a size as commands take it and files are named by it, such as `832x1216`: the height first."""
    return "x".join(map(str, size))


def sizes_in_words(sizes: Sequence[Sequence[int]]) -> str:
    """Return sizes as commands print them, such as `832x1216, 1216x832 (height x width)`."""
    return f"{', '.join(map(size_name, sizes))} (height x width)"


def parse_size(text: str) -> ImageSize:
    """Return the size that a text such as `832x1216` names.

    Raises:
        UsageError: the text names no size.
    """
    found = re.fullmatch(WRITTEN, text)
    if found is None:
        raise UsageError("This is not an image size.", found=text, expected="HEIGHTxWIDTH in pixels, such as 832x1216")
    return int(found[1]), int(found[2])
