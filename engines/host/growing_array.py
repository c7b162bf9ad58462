"""Keep an array on disk while it grows, row by row."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engines.host.room import naming_full_disks


class GrowingArray:
    """An array [rows, ...] in a file without a name, which vanishes with the process, however it ends.

    Args:
        path: file that the array is written to in the end; it grows in the same folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (lives as long as the array)
        self._rows = 0
        self._row: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows [n, ...] of one shape and dtype.

        Raises:
            ValueError: the rows differ from earlier ones in shape or dtype.
            NoRoomError: the disk is full.
        """
        row = rows.shape[1:], rows.dtype
        if self._row not in (None, row):
            raise ValueError(f"rows {row}; earlier ones are {self._row}")
        self._row = row
        self._rows += len(rows)
        with naming_full_disks(self._path):
            self._file.write(np.ascontiguousarray(rows).data)
            self._file.flush()

    def write(self, file: IO[bytes]) -> None:
        """Write the array in NumPy's `.npy` format."""
        if self._row is None:
            raise ValueError("an array without rows")
        shape, dtype = self._row
        header = {"shape": (self._rows, *shape), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        np.lib.format.write_array_header_1_0(file, header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, 2**20)
        self._file.seek(0, 2)

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # closing retries a write that did not fit
            self._file.close()
