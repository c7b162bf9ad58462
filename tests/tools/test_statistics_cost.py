"""The stopwatch changes nothing, and memory is the process's own."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from click.testing import CliRunner

from calib.walk import Walk
from engines.bundle import Bundle
from engines.timed_engine import Stopwatch
from ptqd_export.schedules.settings import ScheduleRequest, resolve
from ptqd_export.schedules.walked import walk_plan
from tools.statistics_cost import main, own_memory, under_stopwatch

if TYPE_CHECKING:
    from tests.tools.conftest import Digits


def test_the_timed_walk_is_the_walk(digits: Digits, tmp_path: Path) -> None:
    bundle = Bundle.open(digits.folder)
    plan, watch = walk_plan(bundle, resolve(ScheduleRequest(steps=2, samples=8, fit="walk"), bundle)), Stopwatch()
    ends = []
    for one in (plan, under_stopwatch(plan, watch)):
        with Walk(one, tmp_path) as walk:
            for _ in walk:
                pass
            ends.append(np.array(walk.states))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert watch.seconds > 0


def test_memory_counts_what_is_allocated_and_touched() -> None:
    before = own_memory()
    with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE) as held:
        held[:] = bytes(64 * 2**20)
        assert 60 < own_memory() - before < 140  # the bytes that were copied from may still be there


def test_a_row_for_every_number_of_samples(digits: Digits) -> None:
    done = CliRunner().invoke(main, [str(digits.folder), "--samples", "8,16", "--steps", "2"])
    assert done.exit_code == 0
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["8", "2"], ["16", "2"]]
    assert all(float(walk) >= float(networks) >= 0 for _, _, walk, networks, *_ in rows)
