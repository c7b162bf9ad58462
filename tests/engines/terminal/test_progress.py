"""A bar for people, and silence for logs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from engines.terminal.progress import progress
with progress("sampling", 3) as advance:
    for _ in range(3):
        advance()
print("rich" in sys.modules)
"""


def _run(stderr: int) -> str:
    command = [sys.executable, "-c", PROGRAM]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, cwd=Path(__file__).parents[3], env=environment
    ).stdout


def test_terminal_gets_a_bar_that_counts_the_steps() -> None:
    ours, theirs = pty.openpty()
    assert _run(theirs) == "True\n"
    os.close(theirs)
    written = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "sampling" in written
    assert "3/3" in written


def test_elsewhere_nothing_is_written_and_rich_is_not_imported(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        assert _run(log.fileno()) == "False\n"
    assert (tmp_path / "log").read_text() == ""
