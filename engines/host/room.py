"""Check free disk space before work begins, and report a full disk in one clear message."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.errors import PtqdError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers: the disk is full, the user's quota is used up, or the file would exceed the size limit."""

SMALL_FILES = 2**24
"""Bytes reserved for what estimates leave out: records, reports, and the file system's metadata."""


class NoRoomError(PtqdError):
    """A file does not fit on its disk (exit code 1)."""

    @classmethod
    def of(cls, error: OSError, path: Path | None = None) -> NoRoomError:
        """Build the error from the system's error, the file being written, and the free space on its disk."""
        written = path if path is not None else None if error.filename is None else Path(error.filename)
        where = "" if written is None else f"{written}: "
        left = "" if written is None else f"; {size_text(free_bytes(written))} free"
        return cls(
            "A file cannot be written for lack of space.", found=f"{where}{error.strerror}{left}", mend="free some space and run again"
        )


def free_bytes(path: Path) -> int:
    """Return the bytes that this user can still write to the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())).free


def check_room(path: Path, needed: int, purpose: str) -> None:
    """Check that the disk of `path`, which need not exist yet, has room for about `needed` bytes.

    Raises:
        NoRoomError: there is too little free space.
    """
    wanted, free = needed + SMALL_FILES, free_bytes(path)
    if free < wanted:
        raise NoRoomError(
            f"There is too little disk space for {purpose}.",
            found=f"{path}: {size_text(free)} free",
            expected=f"about {size_text(wanted)}",
            mend="free some space and run again; finished work is kept",
        )


@contextlib.contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Turn an out-of-space error in the block into a `NoRoomError` that names `path`; an existing `NoRoomError` passes through."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise NoRoomError.of(error, path) from error


def size_text(count: int) -> str:
    """Format a byte count for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
