"""What a step costs besides its network: the parts add up, and only what a clock runs counts for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from tools.studies.host_work import Clock, StepTime, main

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def burn(seconds: float) -> float:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def test_a_clock_counts_processor_time_of_its_own_calls() -> None:
    clock = Clock()
    assert clock.timed(burn)(0.02) == 0.02
    counted = clock.seconds
    burn(0.02)
    clock.timed(time.sleep)(0.02)
    assert counted >= 0.02
    assert clock.seconds - counted < 0.02


def test_share_is_that_of_the_host_in_the_runtime() -> None:
    assert StepTime(runtime=0.05, noise=0.0002, rest=0.0003).share == pytest.approx(0.01)


def test_every_batch_has_its_row(tiny: TinyBundle) -> None:
    done = CliRunner().invoke(main, [str(tiny.folder), "--batch", "1,3", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "3"]
    for _, runtime, noise, rest, share in rows:
        parts = [float(value) for value in (runtime, noise, rest)]
        assert min(parts) > 0
        assert float(share.removesuffix(" %")) == pytest.approx(100 * (parts[1] + parts[2]) / parts[0], rel=0.1)
