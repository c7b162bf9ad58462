"""Read arrays from an untrusted .npz archive: without pickles, and never allocating more than the archive contains."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from engines.untrusted.plain_file import open_plain

SIZE_LIMIT = 2**33
"""Maximum total bytes of the arrays read from an archive; even a small file may unpack to any size."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (ValueError, EOFError, NotImplementedError, RuntimeError, OverflowError, SyntaxError, TokenError, BadZipFile, zlib.error)
"""What zipfile and numpy raise for the various kinds of damage; encrypted entries raise RuntimeError."""


@dataclass(frozen=True)
class ArrayHeader:
    """The header of an `.npy` array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, file: IO[bytes]) -> ArrayHeader:
        """Read the header from the start of an `.npy` file, leaving the file at the values.

        Raises:
            ValueError: the file is not an `.npy` file, or holds Python objects, which numpy would unpickle.
        """
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"array header of version {version}")
        header = cls(*_HEADERS[version](file))
        if header.dtype.hasobject:
            raise ValueError("an array of Python objects")
        return header

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[zipfile.ZipFile]:
    """Open an archive, given as a path or as bytes. Every fault found while opening it or inside the block is raised as OSError.

    Raises:
        OSError: the source is not an archive, or is damaged.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_plain(source) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGE as error:
        raise OSError(str(error)) from error


def array_names(path: Path) -> set[str]:
    """Return the names of the arrays in an archive.

    Raises:
        OSError: the file is not an archive.
    """
    with opened(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_arrays(source: Path | bytes, wanted: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return read-only arrays by name.

    Args:
        source: the archive, as a path or as bytes.
        wanted: names of the arrays to read, ignoring those that the archive lacks; None reads all.

    Raises:
        OSError: the archive is damaged, or its arrays exceed `SIZE_LIMIT` or the size that it declares.
    """
    with opened(source) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        chosen = {name: entry for name, entry in entries.items() if wanted is None or name in wanted}
        total = sum(entry.file_size for entry in chosen.values())
        if total > SIZE_LIMIT:
            raise ValueError(f"the archive unpacks to {total} bytes, more than {SIZE_LIMIT}")
        return {name: _read(archive, entry) for name, entry in chosen.items()}


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        header = ArrayHeader.read(file)
        if header.nbytes > entry.file_size:
            raise ValueError(f"{entry.filename} declares {list(header.shape)} {header.dtype} but has {entry.file_size} bytes")
        data = file.read(header.nbytes)
        if len(data) < header.nbytes or file.read(1):
            raise ValueError(f"{entry.filename} does not have the {header.nbytes} bytes that it declares")
    return np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran_order else "C")
