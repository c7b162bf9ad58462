"""Arrays of an .npz archive that anyone may have written: no pickles, and nothing is allocated that the archive does not hold."""

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
"""Bytes of all arrays that are read from an archive; a small file may claim to unpack to any number."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (ValueError, EOFError, NotImplementedError, RuntimeError, OverflowError, SyntaxError, TokenError, BadZipFile, zlib.error)
"""What zipfile and numpy raise on damage of one kind or another; encrypted entries are a RuntimeError."""


@dataclass(frozen=True)
class ArrayHeader:
    """What an array says of itself."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, file: IO[bytes]) -> ArrayHeader:
        """From the beginning of an `.npy` file; what follows are the values.

        Raises:
            ValueError: it is none, or holds objects, which numpy would unpickle.
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
    """The archive at a path or in memory; whatever is wrong with it, in the opening or in the block, is an OSError.

    Raises:
        OSError: it is no archive, or is damaged.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_plain(source) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _DAMAGE as error:
        raise OSError(str(error)) from error


def array_names(path: Path) -> set[str]:
    """Names of the arrays in an archive.

    Raises:
        OSError: it is none.
    """
    with opened(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_arrays(source: Path | bytes, wanted: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Arrays by name, not to be written to.

    Args:
        source: the archive.
        wanted: their names, as far as they are there; None takes all.

    Raises:
        OSError: the archive is damaged, or its arrays are larger than `SIZE_LIMIT` or than it says they are.
    """
    with opened(source) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        chosen = {name: entry for name, entry in entries.items() if wanted is None or name in wanted}
        total = sum(entry.file_size for entry in chosen.values())
        if total > SIZE_LIMIT:
            raise ValueError(f"it unpacks to {total} bytes, more than {SIZE_LIMIT}")
        return {name: _read(archive, entry) for name, entry in chosen.items()}


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        header = ArrayHeader.read(file)
        if header.nbytes > entry.file_size:
            raise ValueError(f"{entry.filename} of {list(header.shape)} {header.dtype} in {entry.file_size} bytes")
        data = file.read(header.nbytes)
        if len(data) < header.nbytes or file.read(1):
            raise ValueError(f"{entry.filename} has not the {header.nbytes} bytes that it says")
    return np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran_order else "C")
