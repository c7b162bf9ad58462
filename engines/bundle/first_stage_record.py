"""Records of the graphs of a first stage, and of the tiles that they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engines.chain.schedule import Strict
from engines.untrusted.limits import Batch, Name, Shape


class TileRecord(Strict):
    """Part [height, width] of a state that the graph of a first stage takes or makes at a time. Neighbours share at least `overlap`
    elements of a side.
    """

    sides: Annotated[Shape, Field(min_length=2, max_length=2)]
    overlap: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _overlaps_a_part(self) -> Self:
        if self.overlap >= min(self.sides):
            raise ValueError(f"tiles of {list(self.sides)} cannot overlap by {self.overlap}")
        return self

    def check(self, states: Sequence[int], images: Sequence[int]) -> None:
        """Raise ValueError unless tiles can make an image of these [height, width] from a state of these."""
        whole = len(states) == 2 and all(image % side == 0 for side, image in zip(states, images, strict=True))
        if not whole or any(part > side for part, side in zip(self.sides, states, strict=True)):
            raise ValueError(f"tiles of {list(self.sides)} do not make an image of {list(images)} from a state of {list(states)}")

    def pixels(self, states: Sequence[int], images: Sequence[int]) -> tuple[int, ...]:
        """Return [height, width] of a tile in pixels."""
        return tuple(part * image // side for part, side, image in zip(self.sides, states, images, strict=True))


class DecoderRecord(Strict):
    """The decoder of a latent model: its graph takes at most `batch` states at a time and returns images of `image_shape`.

    `weights` is the graph whose file of weights it reads, if that is another one. With a `tile` the graph takes and returns that part. It
    computes in `computes_in`; `psnr_db` is the PSNR of the images of random states to those of float32, where that is another type.
    """

    file: Name
    weights: Name | None = None
    image_shape: Annotated[Shape, Field(min_length=3, max_length=3)]
    batch: Batch
    tile: TileRecord | None = None
    computes_in: Literal["fp32", "fp16", "bf16"] = "fp32"
    psnr_db: float | None = None


class EncoderRecord(Strict):
    """The encoder of a latent model: its graph takes images like the decoder's, in [-1, 1], and returns states.

    `weights` is the graph whose file of weights it reads, if that is another one. With a `tile` the graph takes the image of that part of
    a state, and returns the part.
    """

    file: Name
    weights: Name | None = None
    tile: TileRecord | None = None
