"""Read the files of a bundle, checking that each is a regular file inside the folder with the manifest's size and hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias

from engines.errors import BundleError
from engines.host.machine import cores
from engines.terminal.progress import progress
from engines.untrusted.plain_file import open_plain

COPY_AGAIN = "copy the whole bundle again, or rebuild it"

Identity: TypeAlias = tuple[int, ...]
"""Values that change when a file is written or replaced."""


class Record(Protocol):
    """The manifest's record of a file."""

    @property
    def sha256(self) -> str: ...
    @property
    def bytes(self) -> int: ...


class BundleFiles:
    """The files of one bundle.

    Args:
        folder: folder of the bundle; it may itself be a symbolic link.
        records: the manifest's records by file name.
    """

    def __init__(self, folder: Path, records: Mapping[str, Record]) -> None:
        self._folder = folder
        self._records = records
        self._verified: dict[str, Identity] = {}

    def read(self, name: str) -> bytes:
        """Return the content of a file. The file is read once, so the bytes returned are the bytes verified.

        Raises:
            BundleError: the file is not listed in the manifest, is missing, lies outside the bundle, or was changed.
        """
        record = self._record(name)
        with self._open(name, record) as file:
            data = file.read(record.bytes + 1)
        self._compare(name, record, len(data), hashlib.sha256(data).hexdigest())
        return data

    def path(self, name: str) -> Path:
        """Return the path of a verified file, for callers that open it themselves. The file is hashed again if it changed since last time.

        Raises:
            BundleError: see `read`.
        """
        record, path = self._record(name), self._folder / name
        with self._open(name, record) as file:
            identity = _identity(path, os.fstat(file.fileno()))
            if self._verified.get(name) != identity:
                self._compare(name, record, identity[2], hashlib.file_digest(file, "sha256").hexdigest())
                self._verified[name] = identity
        return path

    def check_all(self) -> None:
        """Check the size of every listed file, then the hashes, on all processors.

        Raises:
            BundleError: see `read`; it names the first such file of the manifest.
        """
        for name, record in self._records.items():
            self._open(name, record).close()
        with progress("checking files", len(self._records)) as advance, ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(self.path, self._records):
                advance()

    def _record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            raise BundleError("The manifest does not list a required file.", found=name, expected=", ".join(self._records))
        return record

    def _open(self, name: str, record: Record) -> BufferedReader:
        path = self._folder / name
        try:
            self._check_inside(path)
            file = open_plain(path)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a cycle of symbolic links
            found = f"no {path}" if isinstance(error, FileNotFoundError) else f"{path}: {getattr(error, 'strerror', None) or error}"
            raise BundleError("A file of the bundle is missing.", found=found, mend=COPY_AGAIN) from error
        size = os.fstat(file.fileno()).st_size
        if size != record.bytes:
            file.close()
            raise _changed(f"{path}: {size} bytes", record)
        return file

    def _check_inside(self, path: Path) -> None:
        real = path.resolve(strict=True)
        if not real.is_relative_to(self._folder.resolve()):
            raise BundleError(
                "A file of the bundle lies outside its folder.",
                found=f"{path} leads to {real}",
                expected=f"a file in {self._folder}",
                mend="if you trust that file, replace the link with a copy of the file",
            )

    def _compare(self, name: str, record: Record, size: int, digest: str) -> None:
        if (size, digest) != (record.bytes, record.sha256):
            raise _changed(f"{self._folder / name}: {size} bytes, sha256 {digest}", record)


def is_plain(name: str) -> bool:
    """Whether a name is a relative path in canonical form that stays inside its folder."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name or name == ".")


def _changed(found: str, record: Record) -> BundleError:
    return BundleError(
        "A file of the bundle was changed or damaged.",
        found=found,
        expected=f"{record.bytes} bytes, sha256 {record.sha256}",
        mend=COPY_AGAIN,
    )


def _identity(path: Path, opened: os.stat_result) -> Identity:
    """Return the identity of the opened file and of the link that led to it."""
    link = path.lstat()
    return (opened.st_dev, opened.st_ino, opened.st_size, opened.st_mtime_ns, opened.st_ctime_ns, link.st_ino, link.st_ctime_ns)
