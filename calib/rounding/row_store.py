"""Arrays with one row per sample, kept in memory while they fit and otherwise in memory-mapped files."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.host.mapped_file import mapped_file


class RowStore:
    """Allocates arrays until it is closed, which removes its files.

    Args:
        folder: folder for the files; emptied first (a killed run may have left some), and removed when the store is closed.
        memory_bytes: most memory that all arrays together may take; an array that would exceed it is mapped from a file.

    Attributes:
        in_memory, in_files: bytes allocated so far.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._files = 0
        self.in_memory = 0
        self.in_files = 0

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._folder)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a new, uninitialized array.

        Raises:
            NoRoomError: the array exceeds the memory limit, and the disk has too little room.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        if self.in_memory + size <= self._memory_bytes:
            self.in_memory += size
            return np.empty(shape, dtype)
        self.in_files += size
        self._files += 1
        return mapped_file(self._folder / str(self._files), dtype, shape)
