"""Locks between processes: who holds one, and that nobody does once that process has ended."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from engines.errors import PtqdError
from engines.host.locks import locked, locked_at_once

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from engines.host.locks import {0} as lock
with lock(Path(sys.argv[1]){1}): print('held'); input()
"""


@contextlib.contextmanager
def _holder(path: Path, how: str = "locked_at_once", doing: str = ", 'counting'") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input ends."""
    command = [sys.executable, "-uc", HOLD.format(how, doing), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_second_process_is_told_who_the_first_is_and_since_when(tmp_path: Path) -> None:
    begin = datetime.now().astimezone().replace(microsecond=0)
    with _holder(tmp_path / "thing") as process, pytest.raises(PtqdError) as caught, locked_at_once(tmp_path / "thing", "counting"):
        pass
    assert caught.value.exit_code == 1
    found = re.fullmatch(
        r"Another process is counting\.\n  found:    process (\d+) on (\S+), since (\S+)\n  expected: one process at a time\n  mend: .*",
        str(caught.value),
    )
    assert found is not None
    assert (int(found[1]), found[2]) == (process.pid, socket.gethostname())
    assert begin <= datetime.fromisoformat(found[3]) <= datetime.now().astimezone()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_process_that_ends_leaves_no_lock_however_it_ends(tmp_path: Path, end: signal.Signals | None) -> None:
    with _holder(tmp_path / "thing") as process:
        if end is None:
            process.communicate("\n")
        else:
            process.send_signal(end)
        process.wait(timeout=10)
        with locked_at_once(tmp_path / "thing", "counting"):
            pass
    assert process.returncode == (0 if end is None else -end)


def test_the_lock_is_that_of_the_open_file_so_that_two_parts_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with locked_at_once(tmp_path / "thing", "counting"):
        with pytest.raises(PtqdError, match=f"process {os.getpid()} on "), locked_at_once(tmp_path / "thing", "counting"):
            pass
        with locked_at_once(tmp_path / "other", "counting"):
            pass
    with locked_at_once(tmp_path / "thing", "counting"):
        pass


def test_a_holder_that_has_not_written_who_it_is_is_waited_for_and_then_unnamed(tmp_path: Path) -> None:
    with (
        _holder(tmp_path / "thing", "locked", ""),
        pytest.raises(PtqdError, match=r"found:    a process that holds .*\.thing\.lock"),
        locked_at_once(tmp_path / "thing", "counting"),
    ):
        pass


def test_who_waits_gets_the_lock_when_its_holder_ends(tmp_path: Path) -> None:
    with _holder(tmp_path / "thing", "locked", "") as first:
        command = [sys.executable, "-uc", HOLD.format("locked", ""), str(tmp_path / "thing")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as second:
            assert second.stdout is not None
            assert select.select([second.stdout], [], [], 1.0)[0] == []
            first.kill()
            assert second.stdout.readline() == "held\n"
            second.communicate("\n")


def test_waiting_lock_is_free_after_the_block(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "thing"):
        pass
    with locked(tmp_path / "new" / "thing"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".thing.lock"]
