"""Locks between processes. The operating system releases a process's locks when the process ends, even if it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from engines.errors import PtqdError
from engines.host.room import naming_full_disks

PATIENCE = 1.0
"""Seconds to wait for the holder of a lock to write who it is."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: process ID.
        host: name of the machine that the process runs on.
        since: local time when the lock was taken, with UTC offset, ISO 8601.
    """

    pid: int
    host: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        return cls(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for `path` during the block; wait while another process holds it.

    The lock file beside `path` is never removed: otherwise a process waiting for the old file and one that creates a new file would both
    proceed.
    """
    with _lock_file(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_at_once(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock for `path` during the block; fail at once if another process holds it.

    Args:
        path: file or folder to lock; it need not exist.
        doing: what the lock is for, quoted in the error message.

    Raises:
        PtqdError: another process holds the lock, or the file system does not support locks.
    """
    with _lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PtqdError(
                f"Another process is {doing}.", found=_holder(file), expected="one process at a time", mend="wait for it to end, or end it"
            ) from error
        except OSError as error:
            raise PtqdError(
                f"The file system does not support locks, so it cannot keep other processes from {doing} at the same time.",
                found=f"{file.name}: {error.strerror}",
                mend="use a folder on a file system that supports locks",
            ) from error
        with naming_full_disks(Path(file.name)):
            file.truncate(0)
            file.write(json.dumps(asdict(Holder.this_process())) + "\n")
            file.flush()
        yield


def _lock_file(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.lock").open("a+")


def _holder(file: IO[str]) -> str:
    """Describe the holder, which writes its own record into the lock file just after taking the lock."""
    deadline = time.monotonic() + PATIENCE
    while True:
        file.seek(0)
        try:
            return str(Holder(**json.loads(file.read())))
        except (ValueError, TypeError):
            if time.monotonic() > deadline:
                return f"a process that holds {file.name}"
            time.sleep(0.05)
