"""Files that anyone may have written: plain ones of a bearable size, opened once, so that what is checked is what is used."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading; one that is no plain file is refused without waiting for it, as a named pipe would have it.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe, socket or device.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a path with a null byte
        raise OSError(errno.EINVAL, str(error)) from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) if stat.S_ISDIR(mode) else OSError(errno.EINVAL, "it is no plain file")


def read_plain(path: Path, limit: int) -> bytes:
    """The whole content of a plain file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read, or is larger.
    """
    with open_plain(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return data
