"""Workers, and what becomes of the work of those that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.cluster.pool import ATTEMPTS, WorkerPool
from engines.cluster.session import WorkerSize
from engines.errors import DeviceLostError, MissingBackendError, PtqdError, UsageError

SIZE = WorkerSize(cpus=1, gpus=0)


def squares(folder: Path, kills: dict[int, int]) -> Any:
    """Work that squares numbers, and whose process is killed the first so many times that it is at a number."""

    @dataclass(frozen=True)
    class Squares:  # in here, so that it travels by value: workers cannot import this file
        def open(self, threads: int) -> Callable[[int], tuple[int, int]]:  # noqa: ARG002 (the protocol's)
            return self._square

        def _square(self, number: int) -> tuple[int, int]:
            for time in range(kills.get(number, 0)):
                marker = folder / f"{number}-{time}"
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            if number == 13:
                raise UsageError("Thirteen is no number.", found=13)
            return number * number, os.getpid()

    return Squares()


def test_a_worker_whose_device_is_lost_is_replaced(ray: Any, tmp_path: Path) -> None:
    """CUDA works again only in another process."""

    @dataclass(frozen=True)
    class Squares:
        def open(self, threads: int) -> Callable[[int], int]:  # noqa: ARG002 (the protocol's)
            return self._square

        def _square(self, number: int) -> int:
            if number == 1 and not (tmp_path / "lost").exists():
                (tmp_path / "lost").touch()
                raise DeviceLostError("The GPU failed during the run.")
            return number * number

    with WorkerPool(ray, Squares(), SIZE, most=1) as pool:
        assert dict(pool.run(3, lambda index: index)) == {0: 0, 1: 1, 2: 4}
        assert pool.lost == 1


def test_a_killed_worker_costs_its_unit_and_no_more(ray: Any, tmp_path: Path) -> None:
    with WorkerPool(ray, squares(tmp_path, {2: 1, 5: 2}), SIZE, most=2) as pool:
        results = dict(pool.run(8, lambda index: index))
        assert {index: square for index, (square, _) in results.items()} == {n: n * n for n in range(8)}
        assert pool.lost == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2-0", "5-0", "5-1"]
        again = dict(pool.run(2, lambda index: index + 6))
        assert [again[0][0], again[1][0]] == [36, 49]
        assert pool.lost == 3


@pytest.mark.slow
def test_a_unit_that_ends_every_worker_ends_the_work(ray: Any, tmp_path: Path) -> None:
    with WorkerPool(ray, squares(tmp_path, {1: ATTEMPTS}), SIZE, most=2) as pool:
        with pytest.raises(PtqdError, match=r"(?s)kills every worker.*found: +3 workers in a row died.*mend:"):
            list(pool.run(3, lambda index: index))
        assert pool.lost == ATTEMPTS


def test_an_error_of_a_worker_is_the_users_own(ray: Any, tmp_path: Path) -> None:
    with (
        WorkerPool(ray, squares(tmp_path, {}), SIZE, most=1) as pool,
        pytest.raises(UsageError, match=r"\AThirteen is no number\.\n.*13\Z"),
    ):
        list(pool.run(1, lambda _: 13))


def test_workers_that_fit_no_machine_are_refused(ray: Any, tmp_path: Path) -> None:
    for size in (WorkerSize(cpus=3, gpus=0), WorkerSize(cpus=1, gpus=1)):
        with pytest.raises(MissingBackendError, match=r"(?s)has room for a worker.*found: +2 CPUs, 0 GPUs.*--ray-cpus"):
            WorkerPool(ray, squares(tmp_path, {}), size, most=1)
