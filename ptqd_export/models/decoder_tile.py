"""Choose the tiles that a decoder takes, so that the memory of decoding does not grow with the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from engines.bundle.first_stage_record import TileRecord
from engines.errors import UsageError
from ptqd_export.models.base import DecoderModule, EncoderModule
from ptqd_export.models.module_checks import image_shape, output_shape

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
    state, image = (sample_shape[0], *sides), (images[0], *(factor * side for side in sides))
    _check_part("decode", decoder, state, image)
    return TileRecord(sides=sides, overlap=max(1, min(sides) // OVERLAPS))


def check_encoder_tile(encoder: EncoderModule, tile: TileRecord, sample_shape: Sequence[int], image_shape: Sequence[int]) -> None:
    """Check, without computing anything, that an encoder takes the tiles of its decoder.

    Args:
        encoder: the encoder.
        tile: tiles of the decoder.
        sample_shape: shape of one state.
        image_shape: shape of the decoder's images.

    Raises:
        UsageError: the encoder does not take the tiles, or returns something else.
    """
    image = (image_shape[0], *tile.pixels(sample_shape[1:], image_shape[1:]))
    _check_part("encode", encoder, image, (sample_shape[0], *tile.sides))


def _check_part(verb: Literal["decode", "encode"], module: nn.Module, part: tuple[int, ...], expected: tuple[int, ...]) -> None:
    try:
        found = str(output_shape(module, (1, *part))[1:])
    except Exception as error:  # whatever the layers raise
        found = f"{type(error).__name__}"
    if found != str(list(expected)):
        raise _untileable(f"{found} from a part {list(part)}", f"a part {list(expected)}", verb)


def _untileable(found: str, expected: str, verb: Literal["decode", "encode"] = "decode") -> UsageError:
    return UsageError(f"The {verb}r cannot {verb} an image in tiles.", found=found, expected=expected, mend=WHOLE)
