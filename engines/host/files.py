"""Write files so that each is either complete or absent, even after a power failure; hash files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engines.errors import UsageError
from engines.host.room import naming_full_disks

PART = ".part"
"""Suffix of a file that is still being written, or whose writer was killed."""


def sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file, reading it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in its subfolders, through links too, without hidden files and folders; sorted.

    A folder that several links lead to is entered once. A link back to a folder that contains `folder` is not followed.
    """
    found: list[Path] = []
    seen = {parent.resolve() for parent in folder.absolute().parents} | {*folder.resolve().parents}
    for here, folders, files in os.walk(folder, followlinks=True):
        real = Path(here).resolve()
        folders[:] = () if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            found += [path for name in files if not name.startswith(".") and (path := Path(here, name)).is_file()]
        seen.add(real)
    return sorted(found)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`: renamed to `path` if the block succeeds, removed if it fails.

    Raises:
        NoRoomError: the disk is full.
    """
    with naming_full_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{PART}"
        try:
            temporary.touch(0o600, exist_ok=False)  # inside, so that a signal right behind it leaves nothing
            yield temporary
            temporary.chmod(0o644)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot fsync a folder
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk, as `sync` does."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove partial files that killed writers left in a folder, or only those of one file name. No other process may be writing them."""
    for part in folder.glob(f".{name}.*{PART}"):
        part.unlink(missing_ok=True)


def writable_folder(path: Path) -> Path:
    """Create the folder `path` if it is missing, check that files can be written there, and return `path`.

    Raises:
        UsageError: the folder cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(
            "The output folder cannot be written.",
            found=f"{path}: {error.strerror}",
            expected="a folder that you can write to",
            mend="choose another folder, or change its permissions",
        ) from error
    return path
