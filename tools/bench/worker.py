"""Run a contestant in its own process, which loads it and then waits for commands, so that contestants can take turns.

The memory of the process is then that of one contestant, and runtimes with competing threads or clashing libraries stay apart.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from engines.errors import PtqdError
from tools.bench.case import Case
from tools.bench.contestants import CONTESTANTS, Runner
from tools.bench.memory import memory_mib

Answer: TypeAlias = Any
"""Result of a command, sent between processes."""


class LeftOutError(PtqdError):
    """A contestant cannot run on this machine."""


@dataclass(frozen=True)
class Loaded:
    """Cost of loading a contestant.

    Attributes:
        seconds: time from importing the runtime to the end of the first network call.
        before_mib: memory of the process before loading: Python, numpy and the bundle's contracts.
    """

    seconds: float
    before_mib: float


class Worker:
    """A handle to a contestant's process.

    Raises:
        LeftOutError: the contestant cannot be loaded.
    """

    def __init__(self, name: str, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, case), daemon=False)
        self._process.start()
        theirs.close()
        try:
            self.loaded: Loaded = self._answer()
        except LeftOutError:
            self._process.join()
            raise

    def ask(self, command: str, *arguments: Any) -> Answer:
        """Have the process run a method of `_Commands`, and wait for the result."""
        self._connection.send((command, arguments))
        return self._answer()

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _answer(self) -> Answer:
        try:
            answer = self._connection.recv()
        except EOFError as error:
            self._process.join()
            raise LeftOutError(f"the process ended with exit code {self._process.exitcode}") from error
        if isinstance(answer, _Failure):
            raise LeftOutError(answer.reason)
        return answer


@dataclass(frozen=True)
class _Failure:
    reason: str


class _Commands:
    """The commands that a worker accepts."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def chain(self) -> None:
        self._runner.chain()

    def network(self, calls: int) -> None:
        for _ in range(calls):
            self._runner.network()

    def outputs(self, visited: Any) -> Any:
        return self._runner.outputs(visited)

    def visited(self) -> Any:
        return self._runner.visited()  # type: ignore[attr-defined]  # called for full precision only

    def peak_mib(self) -> float:
        return memory_mib("VmHWM")


def serve(connection: Connection, name: str, case: Case) -> None:
    """Load a contestant, and answer commands until the other end closes the connection."""
    before, begin = memory_mib("VmRSS"), time.perf_counter()
    try:
        commands = _Commands(CONTESTANTS[name].load(case))
        commands.network(1)
    except Exception as error:  # whatever a runtime raises is the reason to report
        connection.send(_Failure(_reason(error)))
        return
    connection.send(Loaded(time.perf_counter() - begin, before))
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            return
        connection.send(getattr(commands, command)(*arguments))


def _reason(error: Exception) -> str:
    """Format an error as one line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line) if isinstance(error, PtqdError) else next(iter(lines), "")
    return text if isinstance(error, PtqdError) else f"{type(error).__name__}: {text}"
