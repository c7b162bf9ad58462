"""Files that are either whole or absent, also after a power failure, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engines.errors import UsageError
from engines.host.room import naming_full_disks

PART = ".part"
"""How the name of a file ends that is still being written, or whose writer was killed."""


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and is removed when it does not.

    Raises:
        NoRoomError: the disk is full.
    """
    with naming_full_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, outlive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems take none for folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """The same for everything in a folder, and for the folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what killed writers left of the files in a folder, or of one of this name; nobody may be writing them now."""
    for part in folder.glob(f".{name}.*{PART}"):
        part.unlink(missing_ok=True)


def writable_folder(path: Path) -> Path:
    """Create `path` where needed and prove that files can be written there.

    Raises:
        UsageError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(
            "The output folder cannot be written.",
            found=f"{path}: {error.strerror}",
            expected="a folder this user can write to",
            mend="name another folder or change its permissions",
        ) from error
    return path
