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
from engines.errors import UsageError
from engines.untrusted.npz import ArrayHeader, array_names, opened

IMAGES = ("images", "samples")
"""Names of the array, the preferred one first. For latent models `ptqd-run sample --format npz` writes both; `samples` are then latents."""

_EXPECTED = "an .npz archive with images (`images` or `samples`), or with statistics (`mu` and `sigma`)"

FARTHEST = 10.0
"""Largest magnitude accepted. Raw samples leave [-1, 1] a little; larger values are in other units."""


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
                "The reference holds neither images nor statistics.", found=f"{path}: {', '.join(sorted(names))}", expected=_EXPECTED
            )
        with readable(path), opened(path) as archive, archive.open(f"{name}.npy") as file:
            header = ArrayHeader.read(file)
        shape, dtype = header.shape, header.dtype
        if len(shape) != 4 or min(shape) < 1 or header.fortran_order or not (dtype == np.uint8 or dtype.kind == "f"):
            raise UsageError(
                "The reference's images have an unsupported shape or dtype.",
                found=f"{path}: {name} {dtype} {list(shape)}" + (", in Fortran order" if header.fortran_order else ""),
                expected=f"{name} float32 [n, channels, height, width] in [-1, 1], or uint8",
            )
        return cls(path, name, shape[0], shape[1:], dtype)

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
        if not (np.abs(images) <= FARTHEST).all():
            raise UsageError(
                "The reference's images are in the wrong units.",
                found=f"{self.path}: values from {images.min():g} to {images.max():g}",
                expected="floats in [-1, 1], or uint8",
            )
        return images.astype(np.float32)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError of this block into a UsageError: the user can mend the archive."""
    try:
        yield
    except OSError as error:
        raise UsageError("The reference cannot be read.", found=f"{path}: {error}", expected=_EXPECTED) from error
