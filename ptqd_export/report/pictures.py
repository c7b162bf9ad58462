"""The same few samples three times: full precision, the schedule's precisions uncorrected, and corrected."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.apps.pictures.images import to_pixels
from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoisers
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.chain.schedule import Schedule
from engines.errors import BundleError

PICTURES = "report/pictures.png"
MOST = 8
SEED = 1
"""Seed of the noise: `ptqd-run sample BUNDLE --num 8 --seed 1` draws the corrected samples."""

KINDS = ("full precision", "uncorrected", "corrected")


@dataclass(frozen=True)
class Picture:
    """One sample of the report.

    Attributes:
        number: number of the sample.
        row: class or conditioning row of the sample; None for an unconditional model.
        images: one PNG for each kind, as `data:` URIs.
    """

    number: int
    row: int | None
    images: tuple[str, ...]


def draw(
    schedule: Schedule,
    denoisers: Denoisers,
    full_precision: str,
    shape: tuple[int, ...],
    rows: int | None,
    *,
    num: int = MOST,
    on_step: Callable[[], None] = lambda: None,
) -> list[Float32]:
    """Draw the samples; return the final states [num, *shape] of each of `KINDS`.

    Args:
        schedule: the chain.
        denoisers: denoisers by precision.
        full_precision: name of the precision of the first kind.
        shape: shape of a state.
        rows: number of conditioning rows; None for an unconditional model.
        num: number of samples.
        on_step: called after every step of the three chains.
    """
    noise, samples = NoiseSource(SEED, shape), np.arange(num, dtype=np.int64)
    of_samples = np.zeros_like(samples) if rows is None else rows_of(samples, noise, rows, None)
    chains = (
        Chain(schedule, denoisers, full_precision, corrected=False),
        Chain(schedule, denoisers, corrected=False),
        Chain(schedule, denoisers),
    )
    return [chain.sample(noise, samples, of_samples, on_step) for chain in chains]


def sheet_of(kinds: Iterable[Float32]) -> Image.Image:
    """Put the images [num, channels, height, width] of every kind on one sheet without gaps: a row per kind, a column per sample."""
    return Image.fromarray(np.concatenate([np.concatenate(list(to_pixels(kind)), axis=1) for kind in kinds]))


def stored_pictures(bundle: Bundle) -> list[Picture]:
    """Return the pictures that a build drew; none if its samples are not images.

    Raises:
        BundleError: the file is damaged.
    """
    if PICTURES not in bundle.manifest.files:
        return []
    model = bundle.manifest.model
    sheet = _sheet(bundle, *model.image_shape[-2:])
    num = sheet.shape[1] // model.image_shape[-1]
    samples = np.arange(num, dtype=np.int64)
    rows = None if model.conditioning is None else NoiseSource(SEED, model.sample_shape).row(samples, model.conditioning.rows).tolist()
    tiles = zip(*(np.split(line, num, axis=1) for line in np.split(sheet, len(KINDS))), strict=True)
    return [Picture(n, None if rows is None else rows[n], tuple(map(_data_uri, images))) for n, images in enumerate(tiles)]


def _sheet(bundle: Bundle, height: int, width: int) -> NDArray[np.uint8]:
    path = bundle.folder / PICTURES
    try:
        with Image.open(io.BytesIO(bundle.read(PICTURES)), formats=["PNG"]) as image:
            _check_size(path, image.size, (width, height))  # before anything is decompressed
            return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BundleError("The pictures of the report cannot be read.", found=f"{path}: {error}", mend="rebuild the bundle") from error


def _check_size(path: Path, sheet: tuple[int, int], picture: tuple[int, int]) -> None:
    """Check width and height of the sheet against those of a picture."""
    if sheet[1] != len(KINDS) * picture[1] or sheet[0] % picture[0] or not 0 < sheet[0] <= MOST * picture[0]:
        raise BundleError(
            "The pictures of the report have the wrong size.",
            found=f"{path}: {sheet[0]} x {sheet[1]} pixels",
            expected=f"{len(KINDS)} rows of at most {MOST} pictures of {picture[0]} x {picture[1]}",
            mend="rebuild the bundle",
        )


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
