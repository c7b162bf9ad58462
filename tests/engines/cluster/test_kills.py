"""Workers killed where they stand, again and again: the files stay those of one machine."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from engines.cli import main
from tools.studies.own_processes import own_processes

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

SAMPLING = "ray::Worker.run"
"""What a worker calls itself while it is at a unit."""

KILLS = 5
UNITS = 24
BATCH = 4000
"""So many that a unit lasts while a worker is found and killed."""


def sample(bundle: Path, output: Path, *options: str) -> Result:
    arguments = ["sample", str(bundle), "--num", str(UNITS * BATCH), "--seed", "5", "--batch-size", str(BATCH), "--format", "npz"]
    return CliRunner().invoke(main, [*arguments, "--output", str(output), *options])


class Killer(threading.Thread):
    """Kills a worker that is at a unit, waits until others are, and so on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed: set[int] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while len(self.killed) < KILLS and not self.ended.wait(0.05):
            for process in own_processes(SAMPLING)[:1]:
                os.kill(process, signal.SIGKILL)
                self.killed.add(process)
                time.sleep(1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_killed_workers_leave_no_trace_in_the_result(
    tiny: TinyBundle, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    assert sample(tiny.folder, tmp_path / "here").exit_code == 0
    killer = Killer()
    killer.start()
    done = sample(tiny.folder, tmp_path / "there", "--ray", "--ray-cpus", "1")
    killer.ended.set()
    killer.join()
    assert (done.exit_code, done.stderr) == (0, "")
    record_testsuite_property("killed", len(killer.killed))
    lost = re.search(r"workers lost, whose work was repeated: (\d+)", done.stdout)
    assert lost is not None
    assert int(lost[1]) == len(killer.killed) >= 2
    for name in ("samples.npz", "samples.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
