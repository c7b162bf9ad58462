"""What is kept of a batch of samples, as arrays by name. It is made where the batch is sampled and written where the output is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.apps.pictures.images import picture_array, to_levels, to_pixels
from engines.arrays import Float32, Int64
from engines.networks.image_decoder import Decoder

Rendered: TypeAlias = Mapping[str, NDArray[Any]]

Format = Literal["png", "npz", "pixels", "states"]
"""`png`: files. `npz`: final states and, for latent models, decoded images. `pixels`: pictures as arrays. `states`: final states alone."""

SAMPLES, INDICES, IMAGES, PIXELS = "samples", "indices", "images", "pixels"


class Renderer(Protocol):
    def __call__(self, samples: Int64, states: Float32, /) -> Rendered:
        """Return what is kept of the states [B, C, ...] of the samples with numbers [B]."""
        ...


@dataclass(frozen=True)
class PngRenderer:
    """Gives the bytes of PNG files as uint8, by file name: `00000032.png` is the picture of sample 32."""

    decoder: Decoder

    def __call__(self, samples: Int64, states: Float32) -> Rendered:
        pixels = to_pixels(self.decoder(states))
        return {f"{n:08d}.png": np.frombuffer(encode_png(one), np.uint8) for n, one in zip(samples.tolist(), pixels, strict=True)}


@dataclass(frozen=True)
class PixelRenderer:
    """Gives `pixels` uint8 [B, H, W, 1 or 3], the pixels of the pictures that a `PngRenderer` gives."""

    decoder: Decoder

    def __call__(self, samples: Int64, states: Float32) -> Rendered:  # noqa: ARG002 (pixels carry no numbers)
        return {PIXELS: picture_array(self.decoder(states))}


@dataclass(frozen=True)
class RawRenderer:
    """Gives `samples` float32 [B, C, ...], the states at the end of the chain, and `indices` int64 [B]. With a decoder, it also gives
    `images` uint8 [B, C, H, W], which the pictures would show.
    """

    decoder: Decoder | None

    def __call__(self, samples: Int64, states: Float32) -> Rendered:
        raw: dict[str, NDArray[Any]] = {SAMPLES: states, INDICES: samples}
        return raw if self.decoder is None else raw | {IMAGES: to_levels(self.decoder(states))}


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture [H, W] or [H, W, 3] as a PNG file. The same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
