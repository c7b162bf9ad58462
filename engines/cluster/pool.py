"""A pool of workers. Each worker opens the work once and then runs units; the unit of a worker that dies goes to another."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from engines.cluster.lost_device import ending_with_its_device
from engines.cluster.session import WorkerSize
from engines.errors import PtqdError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Unit_contra = TypeVar("Unit_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

ATTEMPTS = 3
"""The run fails once this many workers in a row died at the same unit, or while opening engines: three are no accident."""


class Work(Protocol[Unit_contra, Result_co]):
    """Work that is sent to the workers and opened once in each. What it opens gives the same result for a unit on every worker."""

    def open(self, threads: int, /) -> Callable[[Unit_contra], Result_co]: ...


class Worker(Generic[Unit, Result]):
    """Runs in its own process. It returns errors that a user can mend as results, because Ray would wrap raised ones in its own."""

    def __init__(self, work: Work[Unit, Result], threads: int) -> None:
        self._work = work
        self._threads = threads

    def open(self) -> PtqdError | None:
        try:
            with ending_with_its_device():
                self._run = self._work.open(self._threads)
        except PtqdError as error:
            return error
        return None

    def run(self, unit: Unit) -> Result | PtqdError:
        try:
            with ending_with_its_device():
                return self._run(unit)
        except PtqdError as error:
            return error


@dataclass(frozen=True)
class _Call:
    """What a worker is doing: running the unit at `index`, or opening its engines if `index` is None."""

    worker: Any
    index: int | None


@dataclass(frozen=True)
class _Death:
    """The result of a call whose worker died."""

    cause: Exception


class WorkerPool(Generic[Unit, Result]):
    """Workers on a cluster.

    Args:
        ray: connected Ray module, see `engines.cluster.session.joined`.
        work: what the workers do.
        size: resources of each worker.
        most: maximum number of workers; there are never more than the cluster has room for.

    Attributes:
        lost: number of workers that died; each was replaced.

    Raises:
        MissingBackendError: the cluster has no room for a worker.
    """

    def __init__(self, ray: Any, work: Work[Unit, Result], size: WorkerSize, most: int) -> None:
        self._ray = ray
        self._work = ray.put(work)
        self._threads = size.cpus
        self._actors = ray.remote(Worker).options(num_cpus=size.cpus, num_gpus=size.gpus)
        self._idle: list[Any] = []
        self._calls: dict[Any, _Call] = {}
        self._deaths = Counter[int | None]()
        self.lost = 0
        for _ in range(min(most, size.room(ray))):
            self._start()

    def __enter__(self) -> WorkerPool[Unit, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in [*self._idle, *(call.worker for call in self._calls.values())]:
            self._ray.kill(worker)

    def run(self, count: int, unit: Callable[[int], Unit]) -> Iterator[tuple[int, Result]]:
        """Yield the index and result of each unit `0 .. count - 1`, in order of completion. The caller must read to the end.

        Args:
            count: number of units.
            unit: makes the unit of an index, once a worker is free for it.

        Raises:
            PtqdError: a unit failed, or killed worker after worker.
        """
        waiting, done = deque(range(count)), 0
        while done < count:
            while self._idle and waiting:
                index = waiting.popleft()
                worker = self._idle.pop()
                self._calls[worker.run.remote(unit(index))] = _Call(worker, index)
            call, result = self._next()
            if isinstance(result, _Death):
                self._replace(call, result.cause)
                waiting.extend([] if call.index is None else [call.index])
                continue
            del self._deaths[call.index]
            self._idle.append(call.worker)
            if call.index is not None:
                done += 1
                yield call.index, result

    def _start(self) -> None:
        worker = self._actors.remote(self._work, self._threads)
        self._calls[worker.open.remote()] = _Call(worker, None)

    def _next(self) -> tuple[_Call, Any]:
        """Wait for the next call to end; return the call and its result."""
        (reference,), _ = self._ray.wait([*self._calls], num_returns=1)
        call = self._calls.pop(reference)
        try:
            result = self._ray.get(reference)
        except _deaths(self._ray) as death:
            return call, _Death(death)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        if isinstance(result, PtqdError):
            raise result
        return call, result

    def _replace(self, call: _Call, cause: Exception) -> None:
        """Start another worker in place of one that died."""
        self.lost += 1
        self._deaths[call.index] += 1
        if self._deaths[call.index] == ATTEMPTS:
            raise PtqdError(
                "Workers die before their engines are open."
                if call.index is None
                else "A unit of the work kills every worker that runs it.",
                found=f"{ATTEMPTS} workers in a row died, the last of: {cause}",
                expected="workers that die only occasionally",
                mend="look into Ray's logs on the worker's machine; if memory ran out, give each worker more CPUs or use smaller batches",
            ) from cause
        self._start()


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that Ray raises if a worker, its machine, or a result stored only there is lost."""
    known = ray.exceptions
    return (known.RayActorError, known.WorkerCrashedError, known.NodeDiedError, known.ObjectLostError, known.OutOfMemoryError)
