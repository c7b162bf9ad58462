"""Run commands in a child process with limited memory, which may crash or hang: `python -m tests.hostile.worker`.

The process reads and writes one line of JSON per command.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 6 * 2**30
"""Bytes of address space; threads and libraries reserve much more of it than they use."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a command.

    Attributes:
        exit_code: exit code of the command; a negative one if a signal ended the process; None if the command did not end.
        message: standard error of the command, or a traceback.
    """

    exit_code: int | None
    message: str = ""

    @property
    def refused(self) -> bool:
        """Whether the command ended with an error message that reports no bug."""
        return self.exit_code in (1, 2, 3) and self.message.startswith("error: ") and "this is a bug" not in self.message

    @property
    def crashed(self) -> bool:
        return self.exit_code is not None and self.exit_code < 0


class Worker:
    """Runs commands one after the other, and replaces a process that crashed or hung.

    Args:
        command_line: module of the command line, such as `engines.cli`.
        patience: seconds that one command may take.
        memory: limit of the address space, in bytes.
    """

    def __init__(self, command_line: str, patience: float = 60.0, memory: int = MEMORY) -> None:
        self._arguments = [sys.executable, "-W", "error", "-m", "tests.hostile.worker", command_line, str(memory)]
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: Sequence[object]) -> Outcome:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([str(argument) for argument in arguments]).encode() + b"\n")
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], self._patience)
        line = process.stdout.readline() if readable else b""
        if line:
            return Outcome(**json.loads(line))
        self.close()
        return Outcome(process.returncode if readable else None)

    def close(self) -> None:
        if self._process is not None:
            if self._process.poll() is None and not self._died():
                self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _died(self) -> bool:
        """Wait for a process that closed its output, which is about to end with a status that tells why; return whether it ended."""
        assert self._process is not None
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self._arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, env=environment
        )


def serve(command_line: str, memory: int) -> None:
    from click.testing import CliRunner

    main: Any = importlib.import_module(command_line).main
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries must not print between the answers
    for line in sys.stdin:
        result = CliRunner().invoke(main, json.loads(line))
        raised = result.exception is not None and not isinstance(result.exception, SystemExit)
        message = "".join(traceback.format_exception(result.exception)) if raised else result.stderr
        print(json.dumps({"exit_code": 1 if raised else result.exit_code, "message": message[:20_000]}), file=output, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
