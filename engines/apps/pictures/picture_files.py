"""Pictures that a user gives: PNG files, their content, or arrays of pixels."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.arrays import Float32
from engines.errors import UsageError
from engines.untrusted.plain_file import read_plain

PngFile: TypeAlias = Path | bytes
"""A PNG file, or its content."""

GivenPicture: TypeAlias = PngFile | NDArray[Any]
"""A PNG file, or uint8 pixels [H, W] or [H, W, 1 or 3]."""

PICTURE_BYTES = 2**28
"""Maximum size of a file: 256 MiB, many times the pixels of a picture of 4096 x 4096 in colour."""

MODES = {1: ("L", "1"), 3: ("RGB", "L", "1", "P")}
"""What a picture with this many channels is read from, as Pillow names it. A gray file may stand for a picture in colour."""

HALF = 128
"""Least level that a mask counts as white, as in diffusers: 0.5 of 255, rounded up."""


def pictures_in(place: Path) -> tuple[Path, ...]:
    """Return a file, or the PNG files of a folder in the order of their names.

    Raises:
        UsageError: there is no such file, or the folder has no PNG files.
    """
    found = tuple(sorted(path for path in place.iterdir() if path.suffix.lower() == ".png")) if place.is_dir() else (place,)
    if not found or not all(path.is_file() for path in found):
        raise UsageError("No picture was found.", found=place, expected="a PNG file, or a folder with PNG files")
    return found


def check_picture(picture: GivenPicture, shape: tuple[int, ...], *, mask: bool = False) -> None:
    """Refuse a picture that is not like those of a model, or a mask that does not cover one. Of a file, this reads no more than the header.

    Args:
        picture: the picture.
        shape: shape of the model's pictures, [1 or 3, H, W].
        mask: whether it is a mask, whose colours do not matter.

    Raises:
        UsageError: the picture cannot be read, or has another size or other colours.
    """
    if isinstance(picture, np.ndarray):
        _check_array(picture, shape, mask=mask)
    else:
        with _opened(picture) as image:
            _check_header(_named(picture), image, shape, mask=mask)


def picture_state(picture: GivenPicture, shape: tuple[int, ...]) -> Float32:
    """Return a picture as float32 [1 or 3, H, W] in [-1, 1]: 0 becomes -1, and 255 becomes 1. Raises what `check_picture` raises."""
    check_picture(picture, shape)
    pixels = _levels(picture, "L" if shape[0] == 1 else "RGB").reshape(*shape[1:], -1)
    state = np.moveaxis(np.broadcast_to(pixels, (*shape[1:], shape[0])), -1, 0)
    return np.ascontiguousarray(state / 255 * 2 - 1, dtype=np.float32)


def mask_state(mask: GivenPicture, shape: tuple[int, ...], size: tuple[int, ...]) -> Float32:
    """Return a mask as float32 [1, *size], 1 where it is white, at the pixels that PyTorch's `interpolate` takes for the nearest ones.

    Args:
        mask: the mask.
        shape: shape of the model's pictures, [1 or 3, H, W].
        size: height and width of a state.

    Raises:
        UsageError: see `check_picture`.
    """
    check_picture(mask, shape, mask=True)
    white = _levels(mask, "L").reshape(shape[1], shape[2], -1)[..., 0] >= HALF
    rows, columns = (np.arange(count) * whole // count for count, whole in zip(size, shape[1:], strict=True))
    return white[rows][:, columns].astype(np.float32)[None]


def masked_state(picture: GivenPicture, mask: GivenPicture, shape: tuple[int, ...]) -> Float32:
    """Return a picture as `picture_state` does, with zeros where a mask is white. Raises what `check_picture` raises."""
    kept = 1 - mask_state(mask, shape, shape[1:])
    return np.asarray(picture_state(picture, shape) * kept)


def picture_digest(file: PngFile) -> str:
    """Return the SHA-256 of a picture's file."""
    return hashlib.sha256(_bytes(file)).hexdigest()


def _levels(picture: GivenPicture, mode: str) -> NDArray[Any]:
    if isinstance(picture, np.ndarray):
        return picture * np.uint8(255) if picture.dtype == np.bool_ else picture
    with _opened(picture) as image:
        try:
            return np.asarray(image.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(picture, error) from error


def _opened(file: PngFile) -> Image.Image:
    try:
        return Image.open(BytesIO(_bytes(file)), formats=["PNG"])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error


def _bytes(file: PngFile) -> bytes:
    if isinstance(file, bytes):
        return file
    try:
        return read_plain(file, PICTURE_BYTES)
    except OSError as error:
        raise _unreadable(file, error) from error


def _named(file: PngFile) -> str:
    return f"{len(file)} bytes" if isinstance(file, bytes) else str(file)


def _unreadable(file: PngFile, error: Exception) -> UsageError:
    return UsageError("A picture cannot be read.", found=f"{_named(file)}: {error}", expected="a PNG file")


def _check_header(name: str, image: Image.Image, shape: tuple[int, ...], *, mask: bool) -> None:
    height, width = shape[1:]
    if image.size != (width, height):
        raise _wrong_size(
            mask, f"{name}: {image.size[0]} x {image.size[1]} pixels", f"{width} x {height} pixels, as the model's pictures have"
        )
    modes = MODES[3] if mask else MODES[shape[0]]
    if image.mode not in modes or "transparency" in image.info:
        raise UsageError(
            "A picture has colours that the model has not.",
            found=f"{name}: mode {image.mode}{' with transparency' if 'transparency' in image.info else ''}",
            expected="8 bits per channel without transparency, " + ("gray" if shape[0] == 1 and not mask else "gray or RGB"),
            mend="convert the file",
        )


def _check_array(pixels: NDArray[Any], shape: tuple[int, ...], *, mask: bool) -> None:
    fitting = {shape[1:], (*shape[1:], 1), *(() if mask else {(*shape[1:], shape[0])})}
    dtypes = ("uint8", "bool") if mask else ("uint8",)
    if pixels.shape not in fitting or pixels.dtype not in dtypes:
        expected = " or ".join(map(str, sorted(map(list, fitting), key=len)))
        raise _wrong_size(mask, f"{pixels.dtype} {list(pixels.shape)}", f"{' or '.join(dtypes)} {expected}")


def _wrong_size(mask: bool, found: str, expected: str) -> UsageError:
    return UsageError(
        f"{'The mask' if mask else 'A picture'} has the wrong size.", found=found, expected=expected, mend="resize the picture"
    )
