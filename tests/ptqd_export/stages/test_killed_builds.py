"""A real build is killed again and again (SIGKILL), at random moments, and ends with the bytes of a build that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.host.files import sha256
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.stages.run_build import run_build

MODEL = Path(__file__).parents[3] / "tools" / "digits" / "model"
PLAN = {
    "model": {"path": str(MODEL)},
    "sampler": {"name": "ddim", "steps": 2, "eta": 1.0, "guidance": 1.5},
    "precisions": ["w4a8"],
    "quantization": {"rounding": "block", "reconstruction": {"samples": 8, "iterations": 2}},
    "calibration": {"samples": 8, "batch_size": 8, "activation_samples": 16},
    "target": {"name": "onnxruntime", "benchmark_batch": 1},
    "output": "bundle",
}
SEED = 0
KILLS = 30
PRELOADED = ("torch.onnx", "torch._dynamo", "onnxscript", "diffusers.models.unets.unet_2d", "ptqd_export.stages.run_build")
"""Imported once, so that the time in which a build is killed is the time in which it works."""


def build(folder: Path, fresh: bool) -> None:
    """What `ptqd-export build` does, in a process of its own; its lines go to a file."""
    with (folder.parent / "log").open("a") as log:
        sys.stdout = sys.stderr = log
        run_build(PlanFile(Plan.model_validate(PLAN), folder.parent, folder), fresh=fresh)


def _started(folder: Path, *, fresh: bool) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=build, args=(folder, fresh))
    process.start()
    return process


def _portable(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: sha256(path) for name, path in files.items() if not name.startswith("local/")}


def _working_on(folder: Path) -> str:
    """The stage that is under way, by the folder that it has not finished."""
    stages = [path.name.removeprefix(".unfinished-").rpartition("-")[0] for path in folder.glob("local/stages/.unfinished-*")]
    return stages[0] if stages else "bundle" if (folder / ".unfinished").exists() else "between stages"


def _assert_none_or_whole(folder: Path) -> None:
    """Whoever opens the bundle now is told that it is not finished, or finds every file as its manifest says."""
    try:
        bundle = Bundle.open(folder)
    except UsageError:
        return
    for name in bundle.manifest.files:
        bundle.path(name)


@pytest.mark.slow
def test_a_build_that_is_killed_at_random_points_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _started(tmp_path / "first", fresh=False).join()  # the processor's caches and the disk's are warm for the one that is timed
    begin = time.monotonic()
    undisturbed = _started(tmp_path / "undisturbed", fresh=False)
    undisturbed.join()
    seconds, expected = time.monotonic() - begin, _portable(tmp_path / "undisturbed")
    assert undisturbed.exitcode == 0
    assert expected == _portable(tmp_path / "first")
    assert len(expected) == 8

    rng, folder, killed, rounds = random.Random(SEED), tmp_path / "killed", Counter[str](), 0
    while killed.total() < KILLS:
        rounds, fresh = rounds + 1, True
        while True:
            process = _started(folder, fresh=fresh)
            process.join(rng.uniform(0, seconds))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -9
            killed[_working_on(folder)] += 1
            _assert_none_or_whole(folder)
            fresh = False
        assert _portable(folder) == expected
        assert not list(folder.rglob(".*.part"))
        assert not list(folder.rglob(".unfinished*"))
    with capsys.disabled():
        sys.stdout.write(f"\n{killed.total()} kills in {rounds} builds of {seconds:.0f} s: {dict(killed)}\n")
    assert len(killed) > 4
