"""Procedural training pictures: textures, shapes, digits and photo crops in random colours, degraded by known amounts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torch.nn import functional as F

PHOTO = "photo"
DIGIT = "digit"

MOST_NOISE, MOST_BLUR = 0.5, 2.0
"""Largest standard deviations of the added noise, in units of [-1, 1], and of the Gaussian blur, in pixels."""

Coordinates = tuple[Tensor, Tensor]
"""Rotated and scaled coordinates u, v [n, side, side] of every pixel; the picture is about [-1, 1] wide."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """A batch of pictures.

    Attributes:
        images: [n, 3, side, side] in [-1, 1].
        kinds: [n] index into `KINDS`.
        digits: [n] digit shown; -1 for other kinds.
        amounts: [n, 2] standard deviations of the noise and of the blur, as shares of the largest.
    """

    images: Tensor
    kinds: Tensor
    digits: Tensor
    amounts: Tensor


def _grating(u: Tensor, _v: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.sin(math.pi * _frequency(u) * u)


def _checks(u: Tensor, v: Tensor) -> Tensor:
    frequency = _frequency(u)
    return (torch.sin(math.pi * frequency * u) * torch.sin(math.pi * frequency * v) > 0).float()


def _rings(u: Tensor, v: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.sin(math.pi * _frequency(u) * (u.square() + v.square()).sqrt())


def _gradient(u: Tensor, _v: Tensor) -> Tensor:
    return torch.sigmoid(2 * u)


def _fractal(u: Tensor, _v: Tensor) -> Tensor:
    """Noise whose amplitude falls with frequency to a random power between 0.5 and 2."""
    side = u.shape[-1]
    frequency = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt().clamp(min=1 / side)
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn_like(u)) * frequency ** -(0.5 + 1.5 * torch.rand(len(u), 1, 1)), s=(side, side))
    return torch.sigmoid(noise / noise.std(dim=(1, 2), keepdim=True))


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return _inside(u, 0.6 - (u.square() + v.square()).sqrt())


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _inside(u, 0.55 - torch.maximum(u.abs(), v.abs()))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return _inside(u, 0.35 - torch.maximum(v, 0.866 * u.abs() - 0.5 * v))


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return _inside(u, torch.minimum(0.65 - torch.maximum(u.abs(), v.abs()), 0.2 - torch.minimum(u.abs(), v.abs())))


def _digit(u: Tensor, v: Tensor, digits: Tensor) -> Tensor:
    drawn: Tensor = F.grid_sample(digits, torch.stack((u, v), dim=-1) * 1.3, mode="bicubic", align_corners=False)
    return drawn[:, 0].clamp(0, 1)


TEXTURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grating": _grating, "checks": _checks, "rings": _rings, "gradient": _gradient, "fractal": _fractal,
    "disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross,
}  # fmt: skip
"""Draws masks [n, side, side] in [0, 1] of one kind at coordinates [n, side, side]."""

KINDS = (*TEXTURES, DIGIT, PHOTO)


class Painter:
    """Paints batches of pictures, with torch's random numbers.

    Args:
        photo: scikit-learn's sample photo to crop from, `china.jpg` or `flower.jpg`.
        held_out: draw the digits of the last fifth of scikit-learn's set, not those before.
    """

    def __init__(self, photo: str = "china.jpg", *, held_out: bool = False) -> None:
        self._photo = torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        images, labels = load_digits(return_X_y=True)
        part = slice(len(images) * 4 // 5, None) if held_out else slice(len(images) * 4 // 5)
        self._digits = torch.from_numpy(images[part].reshape(-1, 1, 8, 8).astype(np.float32)) / 16
        self._labels = torch.from_numpy(labels[part])

    def __call__(self, count: int, side: int) -> Pictures:
        """Return pictures of mixed kinds, degraded."""
        kinds, digits, images = self._clean(count, side)
        images, amounts = _degraded(images)
        return Pictures(images, kinds, digits, amounts)

    def clean(self, count: int, side: int) -> Tensor:
        """Return pictures [count, 3, side, side] that are not degraded."""
        return self._clean(count, side)[2]

    def _clean(self, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        kinds = torch.randint(len(KINDS), (count,))
        u, v = _coordinates(count, side)
        chosen = torch.randint(len(self._digits), (count,))
        masks = torch.zeros(count, side, side)
        for number, draw in enumerate(TEXTURES.values()):
            of_kind = kinds == number
            if of_kind.any():
                masks[of_kind] = draw(u[of_kind], v[of_kind])
        shown = kinds == KINDS.index(DIGIT)
        masks[shown] = _digit(u[shown], v[shown], self._digits[chosen[shown]])
        images = _coloured(masks)
        photos = kinds == KINDS.index(PHOTO)
        images[photos] = self._crops(int(photos.sum()), side)
        return kinds, torch.where(shown, self._labels[chosen], -1), images

    def _crops(self, count: int, side: int) -> Tensor:
        """Return crops of the photo, 1 to 3 times as wide as the pictures, reduced to their size."""
        crops = [torch.empty(0, 3, side, side)]
        for _ in range(count):
            width = int(side * (1 + 2 * torch.rand(()).item()))
            top, left = (int(torch.randint(length - width, ())) for length in self._photo.shape[2:])
            crop = self._photo[:, :, top : top + width, left : left + width]
            crops.append(F.interpolate(crop, (side, side), mode="bilinear", antialias=True))
        return torch.cat(crops)


def add_noise(images: Tensor, deviations: Tensor) -> Tensor:
    """Add Gaussian noise of standard deviations [n] to images [n, 3, H, W]."""
    return images + deviations[:, None, None, None] * torch.randn_like(images)


def blur(images: Tensor, deviations: Tensor) -> Tensor:
    """Blur images [n, 3, H, W] with Gaussian windows of standard deviations [n] in pixels; 0 leaves an image as it is."""
    offsets = torch.arange(-6, 7)
    weights = torch.exp(-0.5 * (offsets / deviations.clamp(min=1e-3)[:, None]).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)[:, None]
    planes = F.pad(images.flatten(0, 1)[None], (6, 6, 6, 6), mode="replicate")
    rows = F.conv2d(planes, weights[:, :, :, None], groups=len(weights))
    return F.conv2d(rows, weights[:, :, None], groups=len(weights)).reshape(images.shape)


def _degraded(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images with other contrast, blurred and noisy, and the amounts [n, 2] of noise and blur; each is zero for half of the images.

    A third of the images become gray.
    """
    amounts = torch.rand(len(images), 2) * (torch.rand(len(images), 2) < 0.5)
    contrast = 0.4 + 0.8 * torch.rand(len(images), 1, 1, 1)
    shift = 0.15 * torch.randn(len(images), 3, 1, 1)
    noisy = add_noise(blur(contrast * images + shift, MOST_BLUR * amounts[:, 1]), MOST_NOISE * amounts[:, 0])
    gray = torch.rand(len(images), 1, 1, 1) < 1 / 3
    return torch.where(gray, noisy[:, :1], noisy).clamp(-1, 1), amounts


def _coordinates(count: int, side: int) -> Coordinates:
    """Return coordinates turned by any angle up to 0.4, scaled by 1 to 2, and moved."""
    grid = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = (axis + 0.4 * torch.rand(count, 1, 1) - 0.2 for axis in torch.meshgrid(grid, grid, indexing="ij"))
    angle, scale = 0.8 * torch.rand(count, 1, 1) - 0.4, 1 + torch.rand(count, 1, 1)
    return scale * (x * angle.cos() + y * angle.sin()), scale * (y * angle.cos() - x * angle.sin())


def _frequency(u: Tensor) -> Tensor:
    """Return [n, 1, 1] random numbers of half periods, from 1 to a quarter of the pixels."""
    return torch.exp(torch.rand(len(u), 1, 1) * math.log(u.shape[-1] / 4))


def _inside(u: Tensor, distance: Tensor) -> Tensor:
    """Return a mask with soft borders, one pixel wide, of where the distance from the border is positive."""
    return torch.sigmoid(distance * u.shape[-1])


def _coloured(masks: Tensor) -> Tensor:
    """Paint masks in a random colour on a random, slightly textured background."""
    front, back = 2 * torch.rand(2, len(masks), 3, 1, 1) - 1
    texture = 0.3 * torch.rand(len(masks), 1, 1, 1) * (2 * _fractal(masks, masks)[:, None] - 1)
    painted: Tensor = back + (front - back) * masks[:, None] + texture
    return painted.clamp(-1, 1)
