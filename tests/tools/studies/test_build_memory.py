"""The memory of a build is that of its process, stage by stage; and it stays within what the documentation says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.studies.build_memory import FIRST, SECONDS, Peak, table

ROOT = Path(__file__).parents[3]
BYTES_A_PARAMETER, OTHER_GB = 4.5, 0.8
"""What docs/models.md says that a build needs at most: beside bytes for each parameter, the libraries and the activations."""


WATCHED = """
import json, mmap, sys, time
from dataclasses import asdict
from pathlib import Path
from tools.studies.build_memory import FIRST, LAST, SECONDS, Watch

size, page, path = int(sys.argv[1]), mmap.PAGESIZE, Path(sys.argv[2])
path.write_bytes(bytes(size))
watch = Watch(limit=2**50)
watch.start()
time.sleep(3 * SECONDS)
watch.enter("anonymous")
with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as held:
    held[::page] = bytes(size // page)
    time.sleep(3 * SECONDS)
watch.enter("file")
with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    mapped[::page]
    time.sleep(3 * SECONDS)
watch.enter(LAST)
print(json.dumps({name: asdict(watch.stages[name]) for name in (FIRST, "anonymous", "file")}))
"""


def test_memory_counts_in_the_stage_that_held_it(tmp_path: Path) -> None:
    """In a process of its own, whose memory nothing else changes; every page is touched without a copy."""
    size = 64 * 2**20
    command = [sys.executable, "-c", WATCHED, str(size), str(tmp_path / "file")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    stages = {name: Peak(**peak) for name, peak in json.loads(done.stdout).items()}
    assert stages["anonymous"].own - stages[FIRST].own > 0.9 * size
    assert stages["file"].resident - stages["file"].own > 0.9 * size
    assert stages["anonymous"].seconds >= 3 * SECONDS


def test_a_row_has_the_bytes_of_a_parameter() -> None:
    found = table({"trace": Peak(own=2_500_000_000, resident=3_000_000_000, seconds=7.4)}, before=500_000_000, count=400_000_000)
    assert found.splitlines()[-1] == "| trace | 7 | 2.50 | 5.00 | 3.00 |"


@pytest.mark.slow
def test_a_build_of_400_million_parameters_holds_one_copy_of_its_weights(tmp_path: Path) -> None:
    """In a process of its own. A second float32 copy would be 4 bytes a parameter more."""
    command = [sys.executable, "-m", "tools.studies.build_memory", str(tmp_path), "--parameters", "400"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "2"})
    sys.stderr.write(done.stdout)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    count = sum(path.stat().st_size for path in (tmp_path / "model" / "transformer").glob("*.safetensors")) / 2
    assert count > 400e6
    assert {"load", "trace", "states", "observe", "quantize-w8a8", "statistics", "bundle", "optimize"} <= {row[0] for row in rows}
    for stage, _, own, *_ in rows:
        assert float(own) < BYTES_A_PARAMETER * count / 1e9 + OTHER_GB, stage
