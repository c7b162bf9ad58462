"""Memory-mapped arrays whose disk space is allocated up front."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.host.room import naming_full_disks


def mapped_file(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Create a file and return a writable array of zeros mapped to it.

    Merely setting the file's length would leave holes. If the disk is full when a hole is written, the system kills the process (SIGBUS)
    instead of raising an error. Systems that cannot allocate in advance, such as macOS, keep this risk.

    Raises:
        NoRoomError: the disk has too little space.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with naming_full_disks(path), path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)
