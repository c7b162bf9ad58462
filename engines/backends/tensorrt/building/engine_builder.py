"""Build an engine in a child process, so that any failure of the builder becomes one error and never ends this process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from engines.backends.tensorrt.building.build_spec import BuildSpec
from engines.errors import PtqdError

WORKER = "engines.backends.tensorrt.building.build_worker"
PATIENCE = 900.0
"""Seconds without an event after which the builder counts as hanging: timing the kernels of one layer takes a few minutes at most."""

LAST_MESSAGES = 8


class BuildError(PtqdError):
    """An engine cannot be built."""


@dataclass(frozen=True)
class EngineProgress:
    """Progress of a build.

    Attributes:
        pid: process ID of the child.
        phase: current phase, in the builder's own words.
        fraction: completed fraction of the outermost phase, 0 to 1; it never decreases, although inner phases run in parallel.
    """

    pid: int
    phase: str
    fraction: float


OnProgress: TypeAlias = Callable[[EngineProgress], None]


def build_engine(
    spec: BuildSpec,
    output: Path,
    *,
    timing_cache: Path | None = None,
    on_progress: OnProgress = lambda _: None,
    patience: float = PATIENCE,
) -> None:
    """Build an engine into the file `output`. After an error the file's content is unusable.

    Raises:
        BuildError: the builder refused the graph, crashed, was killed, or hangs; the message includes its last output.
        MissingBackendError: the flavour is not installed.
    """
    spec.traits.load()
    arguments = [spec.to_json(), str(output), *([] if timing_cache is None else [str(timing_cache)])]
    with tempfile.TemporaryFile() as stderr:
        with _child(arguments, stderr) as process:
            try:
                outcome = _follow(process, on_progress, patience)
            finally:
                process.kill()  # does nothing if the child has already ended
        if process.returncode != 0 or not outcome.done:
            raise _failure(spec, process.returncode, outcome, _tail(stderr))


def _child(arguments: list[str], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[4])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", WORKER, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, "PYTHONPATH": path})


@dataclass
class _Outcome:
    """What the child has reported."""

    phases: _Phases = field(default_factory=lambda: _Phases())
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_MESSAGES))
    fraction: float = 0.0
    error: str | None = None
    done: bool = False
    silent_for: float | None = None


class _Phases:
    """Nested phases, outermost first, each with its completed and total steps."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int]] = {}

    def take(self, event: dict[str, Any]) -> None:
        name = event["phase"]
        if event["event"] == "start":
            self._open[name] = (0, event["steps"])
        elif event["event"] == "finish":
            self._open.pop(name, None)
        elif name in self._open:
            self._open[name] = (event["step"] + 1, self._open[name][1])

    @property
    def current(self) -> str:
        return next(reversed(self._open), "finishing")

    @property
    def fraction(self) -> float:
        """Completed fraction; the progress of an inner phase counts as that of the outer phase's current step."""
        inner = 0.0
        for done, steps in reversed(self._open.values()):
            inner = min((done + inner) / steps, 1.0)
        return inner if self._open else 1.0


def _follow(process: subprocess.Popen[bytes], on_progress: OnProgress, patience: float) -> _Outcome:
    """Process events until there are no more."""
    outcome = _Outcome()
    for event in _events(process, patience):
        match event:
            case None:
                outcome.silent_for = patience
            case {"event": "log", "severity": severity, "message": message}:
                outcome.messages.append(f"{severity.lower()}: {message}")
            case {"event": "error", "message": message}:
                outcome.error = message
            case {"event": "done"}:
                outcome.done = True
            case _:
                outcome.phases.take(event)
                outcome.fraction = max(outcome.fraction, outcome.phases.fraction)
                on_progress(EngineProgress(process.pid, outcome.phases.current, outcome.fraction))
    if outcome.silent_for is None:
        process.wait()
    return outcome


def _events(process: subprocess.Popen[bytes], patience: float) -> Iterator[dict[str, Any] | None]:
    """Yield events as they arrive. After `patience` seconds of silence, yield None and stop."""
    assert process.stdout is not None
    pipe, pending = process.stdout.fileno(), b""
    while True:
        readable, _, _ = select.select([pipe], [], [], patience)
        if not readable:
            yield None
            return
        chunk = os.read(pipe, 65536)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from map(json.loads, lines)


def _failure(spec: BuildSpec, returncode: int, outcome: _Outcome, stderr: str) -> BuildError:
    """Build the error for a failed child, followed by the builder's last messages."""
    if outcome.error is not None:
        said = [message for message in outcome.messages if not message.startswith("info:")]
        return BuildError(outcome.error + _listed(said))
    what, mend = _end(returncode, outcome)
    error = PtqdError(what, found=f"{spec.graph} for {spec.flavour}, in phase: {outcome.phases.current}", mend=mend)
    return BuildError(f"{error}{_listed([*outcome.messages, *stderr.splitlines()])}")


def _listed(messages: Sequence[str]) -> str:
    lines = [line for message in messages for line in message.splitlines()]
    return "\n  the builder's last messages:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def _end(returncode: int, outcome: _Outcome) -> tuple[str, str]:
    if outcome.silent_for is not None:
        return (
            f"The TensorRT builder hangs: it reported nothing for {outcome.silent_for:g} seconds.",
            "build again on an idle machine, or report the graph to NVIDIA",
        )
    if returncode == -signal.SIGKILL:
        return "The TensorRT builder was killed: the machine may be out of memory.", "free memory, or lower target.workspace_gib"
    if returncode < 0:
        return (
            f"The TensorRT builder crashed ({signal.Signals(-returncode).name}).",
            "the graph contains something that the builder cannot handle; rebuild the bundle for this target, or report the problem",
        )
    return f"The TensorRT builder ended early, with exit code {returncode}.", "see the builder's messages"


def _tail(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return "\n".join(stderr.read().decode(errors="replace").splitlines()[-LAST_MESSAGES:])
