"""Arrays with one row per sample, kept in memory while they fit and otherwise in memory-mapped files."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engines.host.mapped_file import mapped_file


class RowStore:
    """Allocates arrays until it is closed, which removes its files.

    Args:
        folder: folder for the files; emptied first (a killed run may have left some), and removed when the store is closed.
        memory_bytes: most memory that all arrays together may take; an array that would exceed it is mapped from a file.

    Attributes:
        in_memory, in_files: bytes that are allocated.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._files = 0
        self._paths: dict[int, Path] = {}
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
        path = self._folder / str(self._files)
        array = mapped_file(path, dtype, shape)
        self._paths[id(array)] = path
        return array

    def free(self, array: NDArray[Any]) -> None:
        """Give up an array that `empty` returned. Whoever holds it still can read it."""
        path = self._paths.pop(id(array), None)
        if path is None:
            self.in_memory -= array.nbytes
        else:
            self.in_files -= array.nbytes
            path.unlink()


def rows_like(store: RowStore, batch: Tensor, samples: int) -> NDArray[Any]:
    """Allocate an array [samples, ...] for tensors like a batch [rows, ...]."""
    return store.empty((samples, *batch.shape[1:]), to_numpy(batch[:0]).dtype)


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Copy a tensor to the CPU, floats as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
