"""Choose the tiles that a decoder takes, so that the memory of decoding does not grow with the image."""

from __future__ import annotations

from typing import Literal

from engines.bundle.first_stage_record import TileRecord
from engines.errors import UsageError
from ptqd_export.models.base import DecoderModule
from ptqd_export.models.module_checks import image_shape

SIDE = 1024
"""Pixels of a tile's side with `auto`, and of the sides of the largest square image that `auto` decodes whole."""

LEAST_LATENTS = 4
"""Least side of a tile in elements of the state."""

OVERLAPS = 4
"""A tile overlaps its neighbours by the whole part of this share of its shorter side: a quarter, as in diffusers."""

WHOLE = "set model.decoder_tile to null, which decodes and encodes whole images"


def decoder_tile(decoder: DecoderModule, sample_shape: tuple[int, ...], wanted: int | Literal["auto"] | None) -> TileRecord | None:
    """Return the tiles of a decoder, without computing anything; None if images are decoded whole.

    Args:
        decoder: the decoder.
        sample_shape: shape of one state.
        wanted: `model.decoder_tile` of the plan.

    Raises:
        UsageError: no tile of that side can be decoded.
    """
    if wanted is None:
        return None
    images = image_shape(decoder, sample_shape)
    height, width = images[1:]
    if wanted == "auto":
        if height * width <= SIDE * SIDE:
            return None
        wanted = SIDE
    if max(height, width) <= wanted:
        return None
    factor = height // sample_shape[-2]
    if len(sample_shape) != 3 or images[1:] != tuple(factor * side for side in sample_shape[1:]):
        raise _untileable(
            f"states {list(sample_shape)}, images {list(images)}", "images whose sides are the state's, times one whole number"
        )
    if wanted % factor or wanted < LEAST_LATENTS * factor:
        raise UsageError(
            "The decoder's tile is no whole number of latents, or too small.",
            found=f"model.decoder_tile = {wanted}, {factor} pixels a latent",
            expected=f"a multiple of {factor}, {LEAST_LATENTS * factor} or more",
            mend=f"use {max(LEAST_LATENTS, round(wanted / factor)) * factor}",
        )
    sides = tuple(min(wanted // factor, side) for side in sample_shape[1:])
    _check_part(decoder, sample_shape[0], sides, (images[0], *(factor * side for side in sides)))
    return TileRecord(sides=sides, overlap=max(1, min(sides) // OVERLAPS))


def _check_part(decoder: DecoderModule, channels: int, sides: tuple[int, ...], expected: tuple[int, ...]) -> None:
    try:
        found = str(list(image_shape(decoder, (channels, *sides))))
    except Exception as error:  # whatever the layers raise
        found = f"{type(error).__name__}"
    if found != str(list(expected)):
        raise _untileable(f"{found} from a part {[channels, *sides]} of a state", f"an image {list(expected)}")


def _untileable(found: str, expected: str) -> UsageError:
    return UsageError("The decoder cannot decode an image in tiles.", found=found, expected=expected, mend=WHOLE)
