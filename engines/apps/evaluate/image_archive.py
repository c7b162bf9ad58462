"""Images in an .npz archive, read a few at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engines.arrays import Float32
from engines.chain.finite import is_finite
from engines.errors import UsageError
from engines.untrusted.npz import ArrayHeader, array_names, opened

IMAGES = ("images", "samples")
"""Names of the array, the preferred one first. For latent models `ptqd-run sample --format npz` writes both; `samples` are then latents."""

_EXPECTED = "an .npz archive with images (`images` or `samples`), or with statistics (`mu` and `sigma`)"

CHANNELS = (1, 3)
"""Channels of gray and of colour images."""

LAYOUT = "[n, 1 or 3, height, width]"
UNITS = "floats in [-1, 1], where black is -1, or uint8, where white is 255"

FARTHEST = 10.0
"""Largest magnitude accepted. Raw samples leave [-1, 1] a little; larger values are in other units."""

UNDERSHOOT = 0.25
"""Images in [0, 1] are negative, if at all, where resizing undershot: by less than this part of their largest value."""

BATCH = 64

_AS_UINT8 = 1.5 / 127.5 - 1
"""A value between those of 1 and 2 in uint8."""


@dataclass(frozen=True)
class ImageArchive:
    """The array `images` or `samples` [n, C, H, W] of an archive: floats in [-1, 1] or uint8. `ptqd-run sample --format npz` writes both.

    Attributes:
        path: the archive.
        name: name of the array.
        count: number of images, n.
        shape: [C, H, W] of one image.
        dtype: stored dtype.
    """

    path: Path
    name: str
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, path: Path) -> ImageArchive:
        """Read the header of an archive.

        Raises:
            UsageError: the archive cannot be read, or has no such array.
        """
        with readable(path):
            names = array_names(path)
        name = next((name for name in IMAGES if name in names), None)
        if name is None:
            raise UsageError(
                "The reference holds neither images nor statistics.",
                found=f"{path}: {', '.join(sorted(names)) or 'no arrays'}",
                expected=_EXPECTED,
                mend=f"np.savez(path, images=images), with images {LAYOUT}",
            )
        with readable(path), opened(path) as archive, archive.open(f"{name}.npy") as file:
            header = ArrayHeader.read(file)
        _check_header(header, path, name)
        return cls(path, name, header.shape[0], header.shape[1:], header.dtype)

    def check_units(self) -> None:
        """Read images until one tells that the values are not in [0, 1]. Usually that is the first.

        Raises:
            UsageError: the file ends early, or the values are in other units.
        """
        uint8, low, high = self.dtype == np.uint8, math.inf, -math.inf
        for batch in self.batches(BATCH):
            low, high = min(low, float(batch.min())), max(high, float(batch.max()))
            if high > _AS_UINT8 if uint8 else low < -UNDERSHOOT * high:
                return
        of_floats = "turn images in [0, 1] into 2 * images - 1; if these are in [-1, 1] but without a dark pixel, store them as uint8"
        raise UsageError(
            "The reference's images are in the wrong units.",
            found=f"{self.path}: " + ("uint8 without a value above 1" if uint8 else f"floats from {low:g} to {high:g}"),
            expected=UNITS,
            mend="multiply images in [0, 1] by 255 before they become uint8" if uint8 else of_floats,
        )

    def batches(self, size: int) -> Iterator[Float32]:
        """Yield consecutive images, at most [size, C, H, W], in [-1, 1].

        Raises:
            UsageError: the file ends early, or the values are in other units.
        """
        with readable(self.path), opened(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            ArrayHeader.read(file)
            for begin in range(0, self.count, size):
                yield self._read(file, min(size, self.count - begin))

    def _read(self, file: IO[bytes], count: int) -> Float32:
        size = count * math.prod(self.shape) * self.dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise UsageError("The reference is truncated.", found=self.path, expected=f"{self.count} images", mend="write it again")
        images = np.frombuffer(data, self.dtype).reshape(count, *self.shape)
        if self.dtype == np.uint8:
            return np.asarray(images / np.float32(127.5) - np.float32(1))
        if not is_finite(images):
            raise UsageError("The reference's images contain NaN or infinity.", found=self.path, expected=UNITS)
        if np.abs(images).max() > FARTHEST:
            raise UsageError(
                "The reference's images are in the wrong units.",
                found=f"{self.path}: values from {images.min():g} to {images.max():g}",
                expected=UNITS,
                mend="store images with values from 0 to 255 as uint8",
            )
        return images.astype(np.float32)


def _check_header(header: ArrayHeader, path: Path, name: str) -> None:
    shape, dtype = header.shape, header.dtype
    found = f"{path}: {name} {dtype} {list(shape)}"
    if len(shape) != 4 or min(shape[1:]) < 1 or header.fortran_order or not (dtype == np.uint8 or dtype.kind == "f"):
        raise UsageError(
            "The reference's images have an unsupported shape or dtype.",
            found=found + (", in Fortran order" if header.fortran_order else ""),
            expected=f"{name} {LAYOUT}: {UNITS}",
        )
    if shape[1] not in CHANNELS and shape[3] in CHANNELS:
        raise UsageError(
            "The channels of the reference's images are not in their place.",
            found=found,
            expected=f"{name} {LAYOUT}",
            mend="np.savez(path, images=np.ascontiguousarray(np.moveaxis(images, -1, 1)))",
        )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError of this block into a UsageError: the user can mend the archive."""
    try:
        yield
    except OSError as error:
        raise UsageError("The reference cannot be read.", found=f"{path}: {error}", expected=_EXPECTED) from error
