"""The sizes of one sample, and latents as the tokens of a transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """The sizes of one sample.

    Attributes:
        config: configuration of the transformer, with the defaults of its class.
        channels: channels of the latents.
        sides: sides of the latents, any number of them: height and width, for example.
        pixels: pixels of the image per latent, along each side.
    """

    config: Mapping[str, Any]
    channels: int
    sides: tuple[int, ...]
    pixels: int

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.channels, *self.sides)

    def grid(self, patch: int) -> tuple[int, ...]:
        """Return the sides of the sample in tokens, each of which has `patch` latents along every side."""
        return tuple(side // patch for side in self.sides)

    def tokens(self, patch: int) -> int:
        """Return the number of tokens of the sample."""
        return math.prod(self.grid(patch))


def pack(latents: Tensor, patch: int) -> Tensor:
    """Return latents [B, C, *sides] as tokens [B, tokens, C * patch ** axes]: channels first, then the latents of a patch row by row."""
    batch, channels, *sides = latents.shape
    axes, split = len(sides), [size for side in sides for size in (side // patch, patch)]
    places = range(2, 2 + 2 * axes)
    cut = latents.reshape(batch, channels, *split).permute(0, *places[::2], 1, *places[1::2])
    return cut.reshape(batch, math.prod(split[::2]), channels * patch**axes)


def unpack(tokens: Tensor, sides: tuple[int, ...], patch: int) -> Tensor:
    """Return tokens [B, tokens, C * patch ** axes] as latents [B, C, *sides]; the inverse of `pack`."""
    axes, grid = len(sides), [side // patch for side in sides]
    batch, channels = tokens.shape[0], tokens.shape[-1] // patch**axes
    cut = tokens.reshape(batch, *grid, channels, *[patch] * axes)
    order = [place for axis in range(axes) for place in (1 + axis, 2 + axes + axis)]
    return cut.permute(0, 1 + axes, *order).reshape(batch, channels, *sides)
