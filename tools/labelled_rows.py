"""A picture of the same samples in several rows, with the name of each row on its left."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 4
"""Every pixel of a sample becomes a square of this side, so that nothing is blurred."""

GAP = 5
LABEL_WIDTH = 128
FONT_SIZE = 20
PAPER, INK = "#ffffff", "#1a1a1a"


def draw_rows(rows: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """Draw pixels [N, H, W, 3] by label; a label may have several lines. All rows have the same shape."""
    count, height, width, _ = next(iter(rows.values())).shape
    pitch = SCALE * width + GAP, SCALE * height + GAP
    picture = Image.new("RGB", (LABEL_WIDTH + count * pitch[0] + GAP, len(rows) * pitch[1] + GAP), PAPER)
    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    for i, (label, pixels) in enumerate(rows.items()):
        top = GAP + i * pitch[1]
        canvas.multiline_text((GAP, top + SCALE * height / 2), label, INK, font, anchor="lm", spacing=6)
        for j, sample in enumerate(pixels):
            enlarged = Image.fromarray(sample).resize((SCALE * width, SCALE * height), Image.Resampling.NEAREST)
            picture.paste(enlarged, (LABEL_WIDTH + j * pitch[0], top))
    return picture
