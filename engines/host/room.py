"""Room on disks: asked for before work begins, and named in one message where it runs out all the same."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.errors import PtqdError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the user's quota is, or a file may not become as large."""

SMALL_FILES = 2**24
"""Bytes for what no estimate counts: records, reports, and the file system's own books."""


class NoRoomError(PtqdError):
    """A file does not fit on its disk (exit code 1)."""

    @classmethod
    def of(cls, error: OSError, path: Path | None = None) -> NoRoomError:
        """What the system said, with the file that was being written and the room that is left where it lies."""
        written = path if path is not None else None if error.filename is None else Path(error.filename)
        where = "" if written is None else f"{written}: "
        left = "" if written is None else f"; {size_text(free_bytes(written))} free"
        return cls("There is no room to write a file.", found=f"{where}{error.strerror}{left}", mend="free some room, and run it again")


def free_bytes(path: Path) -> int:
    """What this user can still write where `path` lies, or will lie."""
    return shutil.disk_usage(next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())).free


def check_room(path: Path, needed: int, purpose: str) -> None:
    """See that about so many bytes fit where `path` will lie.

    Raises:
        NoRoomError: they do not.
    """
    wanted, free = needed + SMALL_FILES, free_bytes(path)
    if free < wanted:
        raise NoRoomError(
            f"There is too little room on the disk for {purpose}.",
            found=f"{path}: {size_text(free)} free",
            expected=f"about {size_text(wanted)}",
            mend="free some room, and run it again; what is finished is kept",
        )


@contextlib.contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Where there is no room for what the block writes, the error names `path`, unless it is named already."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise NoRoomError.of(error, path) from error


def size_text(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
