"""Arrays in files, with their room on the disk taken at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.host.room import naming_full_disks


def mapped_file(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new array of zeros in a new file.

    A file that is only as long as the array has holes, and where the disk is full by the time a hole is written, the system ends the
    process (SIGBUS) instead of raising an error. Where room cannot be taken in advance, as on macOS, that remains.

    Raises:
        NoRoomError: the disk has too little room.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with naming_full_disks(path), path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)
