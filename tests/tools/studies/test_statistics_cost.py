"""The stopwatch changes nothing, and memory is the process's own."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from click.testing import CliRunner

from calib.walk.fit import walk_plan
from calib.walk.walk import Walk
from engines.apps.bench.timed_engine import Stopwatch
from engines.bundle.bundle import Bundle
from ptqd_export.schedules.add_schedule import measured_networks
from ptqd_export.schedules.settings import ScheduleRequest, resolve
from tools.studies.statistics_cost import main, own_memory, under_stopwatch

if TYPE_CHECKING:
    from tests.tools.conftest import Digits


def test_the_timed_walk_is_the_walk(digits: Digits, tmp_path: Path) -> None:
    bundle = Bundle.open(digits.folder)
    settings, watch = resolve(ScheduleRequest(steps=2, samples=8, fit="walk"), bundle), Stopwatch()
    networks = measured_networks(bundle, settings, settings.fit.batch_size)
    ends = []
    for one in (networks, under_stopwatch(networks, watch)):
        with Walk(walk_plan(one, settings.fit), tmp_path) as walk:
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
