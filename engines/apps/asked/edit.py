"""Images that samples start from, and the part of them to repaint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.apps.pictures.images import check_drawable
from engines.apps.pictures.picture_files import (
    GivenPicture,
    check_picture,
    mask_state,
    masked_state,
    picture_digest,
    picture_state,
    pictures_in,
)
from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import ModelRecord
from engines.chain.origin import Origin
from engines.chain.sampling import Chain
from engines.errors import UsageError
from engines.networks.encoder import check_encodable, lacks_mask
from engines.networks.kept_engines import KeptEngines

STRENGTH = 0.8
"""Strength that a user does not choose, as in diffusers' image-to-image pipelines."""

GivenImages: TypeAlias = str | Path | bytes | NDArray[Any]


def chosen_strength(edit: Edit | None, strength: float | None, model: ModelRecord) -> float | None:
    """Return the strength of a run: the given one, or the usual one of a run that starts from images."""
    usual = 1.0 if model.repaints else STRENGTH
    return usual if edit is not None and strength is None else strength


def given_pictures(image: GivenImages) -> tuple[GivenPicture, ...]:
    """Return the pictures that a user gives, see `Edit.of`.

    Raises:
        UsageError: there are none.
    """
    if isinstance(image, np.ndarray):
        return tuple(image) if image.ndim == 4 else (image,)
    if isinstance(image, bytes):
        return (image,)
    return pictures_in(Path(image))


def check_number(images: Sequence[GivenPicture], num: int) -> None:
    """Raises UsageError if the images are neither one for all samples nor one for each."""
    if len(images) not in (1, num):
        raise UsageError(
            "The number of images does not fit the number of samples.",
            found=f"{len(images)} images for {num} samples",
            expected=f"1 image for all samples, or {num}",
        )


@dataclass(frozen=True, eq=False)
class Edit:
    """Images to start from.

    Attributes:
        images: one image for all samples, or one for each.
        mask: white where the samples are repainted; None repaints all.
    """

    images: tuple[GivenPicture, ...]
    mask: GivenPicture | None = None

    @classmethod
    def of(cls, image: GivenImages | None, mask: GivenImages | None = None) -> Edit | None:
        """Return the edit that a user asks for; None without images.

        Args:
            image: a PNG file or its content, a folder of PNG files, uint8 pixels [H, W] or [H, W, C] of one image, or those of several,
                [N, H, W, C].
            mask: a PNG file or its content, or uint8 or bool pixels [H, W] or [H, W, 1].

        Raises:
            UsageError: there are no such pictures, or a mask without an image.
        """
        if image is None:
            if mask is not None:
                raise UsageError("A mask needs an image.", found="a mask without an image", expected="the image to keep a part of")
            return None
        return cls(given_pictures(image), Path(mask) if isinstance(mask, str) else mask)

    def check(self, bundle: Bundle, num: int) -> None:
        """Check, before any engine opens, that `num` samples of a bundle can start from the images.

        Raises:
            UsageError: they cannot.
        """
        model = bundle.manifest.model
        check_drawable(model.image_shape, mend="sample without an image")
        check_encodable(bundle)
        check_number(self.images, num)
        for image in self.images:
            check_picture(image, model.image_shape)
        if self.mask is None:
            if model.repaints:
                raise lacks_mask("an image without a mask")
            return
        check_picture(self.mask, model.image_shape, mask=True)
        if len(model.sample_shape) != 3:
            raise UsageError("A mask needs states with a height and a width.", found=f"states of {list(model.sample_shape)}")

    def origin(self, bundle: Bundle, chain: Chain, kept: KeptEngines, *, first: int, strength: float) -> Origin:
        """Return what the chains start from; `first` is the number of the sample that takes the first image."""
        model = bundle.manifest.model
        mask = None if self.mask is None else mask_state(self.mask, model.image_shape, model.sample_shape[1:])
        clean, from_noise = self._clean(model.image_shape, kept, first), mask is not None and strength == 1
        return Origin(chain.levels, clean, None if model.repaints else mask, from_noise=from_noise)

    def painted(self, bundle: Bundle, kept: KeptEngines) -> Float32:
        """Return what a network that repaints takes beside its states: the mask, and the latents of each masked image, [K, 1 + C, h, w]."""
        assert self.mask is not None, "`check` refuses an image without a mask"
        model = bundle.manifest.model
        mask = mask_state(self.mask, model.image_shape, model.sample_shape[1:])
        images = [kept.encoder(masked_state(image, self.mask, model.image_shape)[None])[0] for image in self.images]
        return np.stack([np.concatenate([mask, latents]) for latents in images])

    def _clean(self, shape: tuple[int, ...], kept: KeptEngines, first: int) -> Callable[[Int64], Float32]:
        encode = kept.encoder
        if len(self.images) == 1:
            alone = encode(picture_state(self.images[0], shape)[None])
            return lambda _: alone

        def clean(samples: Int64) -> Float32:
            return encode(np.stack([picture_state(self.images[n - first], shape) for n in samples.tolist()]))

        return clean

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the files of the images, in their order."""
        return tuple(picture_digest(image) for image in self.images if not isinstance(image, np.ndarray))

    @property
    def mask_digest(self) -> str | None:
        """SHA-256 of the file of the mask; None if there is none."""
        return None if self.mask is None or isinstance(self.mask, np.ndarray) else picture_digest(self.mask)
