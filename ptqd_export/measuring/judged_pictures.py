"""What the mode `auto` judges a chain by: the pictures that it draws."""

from __future__ import annotations

from calib.walk.chain_error import Pictured
from engines.apps.pictures.images import is_drawable
from engines.arrays import Float32
from engines.networks.image_decoder import Decoder


def pictured_by(decoder: Decoder, shape: tuple[int, ...]) -> Pictured | None:
    """Return the function from end samples to pictures [n, 1 or 3, H, W] in [-1, 1]; None if they are no pictures.

    Args:
        decoder: decoder of the samples.
        shape: shape of a decoded sample.
    """

    def pictured(samples: Float32) -> Float32:
        return decoder(samples).clip(-1, 1)

    return pictured if is_drawable(shape) else None
