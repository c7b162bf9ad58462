"""A contestant in a process of its own: it loads, and then does what it is told, and waits, so that contestants can take turns.

Memory is then the contestant's alone, and runtimes whose threads would fight, or whose libraries would clash, never meet.
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
"""Whatever a command returns; it travels between processes."""


class LeftOutError(PtqdError):
    """A contestant cannot run here."""


@dataclass(frozen=True)
class Loaded:
    """What loading took.

    Attributes:
        seconds: from importing the runtime to the end of the first network call.
        before_mib: the process before that: Python, numpy, and the contracts of the bundle.
    """

    seconds: float
    before_mib: float


class Worker:
    """A contestant's process, seen from the outside.

    Raises:
        LeftOutError: it cannot be loaded.
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
        """Have it run a function of `_Commands`, and wait."""
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
            raise LeftOutError(f"the process ended with {self._process.exitcode}") from error
        if isinstance(answer, _Failure):
            raise LeftOutError(answer.reason)
        return answer


@dataclass(frozen=True)
class _Failure:
    reason: str


class _Commands:
    """What a worker can be told."""

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
        return self._runner.visited()  # type: ignore[attr-defined]  # asked of full precision alone

    def profile(self) -> Any:
        return self._runner.profile()  # type: ignore[attr-defined]  # asked of contestants on ONNX Runtime alone

    def peak_mib(self) -> float:
        return memory_mib("VmHWM")


def serve(connection: Connection, name: str, case: Case) -> None:
    """Load a contestant, and answer commands until the other end is closed."""
    before, begin = memory_mib("VmRSS"), time.perf_counter()
    try:
        commands = _Commands(CONTESTANTS[name].load(case))
        commands.network(1)
    except Exception as error:  # whatever a runtime raises is a reason to be told
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
    """One line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    text = "; ".join(line for line in lines if line) if isinstance(error, PtqdError) else next(iter(lines), "")
    return text if isinstance(error, PtqdError) else f"{type(error).__name__}: {text}"
