"""An endless supply of coloured digits, float32 RGB 32x32 in [-1, 1]: scikit-learn's handwriting in one colour on a background of another.

Every image is `ground + mask * (ink - ground)`: one of the 1,797 digits, slightly moved and scaled, with ink and background colours drawn
from continuous distributions. The mean colour of an image is therefore a continuous quantity, and a constant error of the predicted noise
shows up as a measurable shift of the mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from tools.digits.data import digits

SIZE = 32
CHANNELS = 3
WIDTH = (20.0, 30.0)
"""Smallest and largest width of a digit, in pixels."""
SHIFT = 2.0
"""Largest distance between the centres of the digit and the image along each axis, in pixels."""


@dataclass(frozen=True)
class Coloured:
    """Images [N, 3, 32, 32] in [-1, 1], their digits [N], and the colours of ink and background [N, 3] in [-1, 1]."""

    images: torch.Tensor
    labels: torch.Tensor
    ink: torch.Tensor
    ground: torch.Tensor


def coloured(count: int, generator: torch.Generator, chosen: NDArray[np.intp] | None = None) -> Coloured:
    """Draw the next `count` images from the generator, of the chosen digits (indices into `tools.digits.data.digits`) or of all digits."""
    handwriting, labels = _handwriting()
    among = torch.arange(len(labels)) if chosen is None else torch.from_numpy(chosen)
    index = among[torch.randint(len(among), (count,), generator=generator)]
    ink = _colour(count, generator, saturation=(0.6, 1.0), value=(0.75, 1.0))
    ground = _colour(count, generator, saturation=(0.3, 1.0), value=(0.1, 0.5))
    mask = _place(handwriting[index], generator)
    images = ground[:, :, None, None] + mask * (ink - ground)[:, :, None, None]
    return Coloured(images, labels[index], ink, ground)


@lru_cache(maxsize=1)
def _handwriting() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of ink in each pixel, [1797, 1, 16, 16] in [0, 1], and the labels [1797]."""
    images, labels = digits()
    return (images + 1) / 2, labels


def _place(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Place masks [N, 1, 16, 16] at a random width and position on the canvas [N, 1, 32, 32]; there is no ink outside the masks."""
    zoom = SIZE / _uniform(len(mask), WIDTH, generator)
    shift = _uniform(2 * len(mask), (-SHIFT, SHIFT), generator).reshape(-1, 2) * 2 / SIZE
    affine = torch.zeros(len(mask), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom
    affine[:, :, 2] = shift * zoom[:, None]
    grid = torch.nn.functional.affine_grid(affine, [len(mask), 1, SIZE, SIZE], align_corners=False)
    return torch.nn.functional.grid_sample(mask, grid, align_corners=False)


def _colour(count: int, generator: torch.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> torch.Tensor:
    """Draw colours of any hue, [count, 3] in [-1, 1], from the hexagonal HSV model (Smith 1978)."""
    hue, s, v = _uniform(count, (0.0, 6.0), generator), _uniform(count, saturation, generator), _uniform(count, value, generator)
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None]) % 6
    rgb = v[:, None] * (1 - s[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
    return 2 * rgb - 1


def _uniform(count: int, between: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    low, high = between
    return low + (high - low) * torch.rand(count, generator=generator)
