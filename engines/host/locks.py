"""One process at a time, by locks of the operating system: a process that ends lets go of its own, however it ends."""

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
"""Seconds in which the holder of a lock will have written who it is."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        pid: of the process.
        host: where it runs.
        since: local time with its offset, ISO 8601.
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
    """Hold the lock that belongs to `path`; waits for whoever holds it.

    The lock file beside `path` stays: were it removed, a process that waits for it and one that makes it anew would both go on.
    """
    with _lock_file(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_at_once(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock that belongs to `path`, or say who does.

    Args:
        path: need not be there.
        doing: what the lock is for, for the message.

    Raises:
        PtqdError: another process holds it, or the file system has no locks.
    """
    with _lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PtqdError(
                f"Another process is {doing}.", found=_holder(file), expected="one at a time", mend="wait until it has ended, or end it"
            ) from error
        except OSError as error:
            raise PtqdError(
                f"A file system without locks cannot keep other processes from {doing} at the same time.",
                found=f"{file.name}: {error.strerror}",
                mend="put it on a file system that has them",
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
    """Who holds the lock, as it wrote itself a moment after it took it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        file.seek(0)
        try:
            return str(Holder(**json.loads(file.read())))
        except (ValueError, TypeError):
            if time.monotonic() > deadline:
                return f"a process that holds {file.name}"
            time.sleep(0.05)
