"""Arrays of one row a sample: in memory as far as they fit, else in memory-mapped files."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.host.mapped_file import mapped_file


class RowStore:
    """Gives out arrays until it is closed; then its files are gone.

    Args:
        folder: for its files; emptied first (a killed run may have left some), and removed when the store is closed.
        memory_bytes: most memory that the arrays together may take; an array that would exceed it is mapped from a file.

    Attributes:
        in_memory, in_files: bytes given out so far.
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
        """A new array, its values not set.

        Raises:
            NoRoomError: it exceeds the memory, and the disk has too little room.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        if self.in_memory + size <= self._memory_bytes:
            self.in_memory += size
            return np.empty(shape, dtype)
        self.in_files += size
        self._files += 1
        return mapped_file(self._folder / str(self._files), dtype, shape)
