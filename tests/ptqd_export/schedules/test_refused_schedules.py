"""Requests for schedules that do not fit a bundle: one message, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from ptqd_export.cli import main
from tests.ptqd_export.stages.whole_builds import portable

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def _run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["schedule", str(folder), "--name", "other", *arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--name", "a/b"], "cannot have this name"),
        (["--name", "../b"], "cannot have this name"),
        (["--name", "default"], "Only a build can write the default schedule"),
        (["--policy", "budget"], "must be given together"),
        (["--budget", "0.1"], "must be given together"),
        (["--cost", "time"], "A cost needs a budget"),
        (["--policy", "budget", "--budget", "0.0001"], "Every chain costs more than the budget"),
        (["--sampler", "lms"], "The sampler is unknown."),
        (["--steps", "1001"], "num_train_timesteps = 1000"),
        (["--sampler", "ddpm", "--eta", "0.5"], "eta = 1"),
        (["--precisions", "w4a8,w5a8"], "w5a8"),
        (["--policy", "fixed"], "--precisions"),
        (["--policy", "fixed", "--precisions", "w4a8,w8a8"], "2 precisions"),
        (["--policy", "best"], "'best'"),
        (["--parts", "gain,scale"], "'scale'"),
        (["--fit", "moments", "--steps", "3"], "4 steps"),
        (["--fit", "moments", "--eta", "0"], "eta 1"),
        (["--fit", "moments", "--variance", "shift"], "other timesteps"),
        (["--fit", "moments", "--samples", "9"], "need a new walk"),
        (["--variance", "shift", "--trajectory", "fp"], "trajectory"),
        (["--variance", "q-drift", "--sampler", "plms"], "clean sample"),
        (["--parts", "chain", "--trajectory", "fp"], "accumulates no error"),
        (["--fit", "moments", "--parts", "chain"], "accumulated error"),
    ],
)
@pytest.mark.usefixtures("no_engines")
def test_what_does_not_fit_is_told_and_nothing_is_written(finished_tiny: TinyBundle, arguments: list[str], named: str) -> None:
    before = portable(finished_tiny.folder)
    done = _run(finished_tiny.folder, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert portable(finished_tiny.folder) == before


def test_a_bundle_without_statistics_is_told(own_tiny: TinyBundle) -> None:
    before = portable(own_tiny.folder)
    done = _run(own_tiny.folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: The bundle has no statistics of this schedule.\n  found:")
    assert portable(own_tiny.folder) == before


def test_no_bundle_is_told(tmp_path: Path) -> None:
    assert _run(tmp_path).exit_code == 2


def test_moments_of_one_branch_say_nothing_of_guidance(built_unconditional: TinyBundle) -> None:
    before = portable(built_unconditional.folder)
    done = _run(built_unconditional.folder, "--guidance", "2", "--fit", "moments")
    assert (done.exit_code, "of one branch, at guidance 1" in done.stderr) == (2, True)
    done = _run(built_unconditional.folder, "--guidance", "2")
    assert (done.exit_code, "cannot be guided" in done.stderr) == (2, True)
    assert portable(built_unconditional.folder) == before
    assert _run(built_unconditional.folder, "--guidance", "1", "--mode", "mmse").exit_code == 0


def test_steps_with_clipping_are_not_in_the_moments(built_tiny: TinyBundle) -> None:
    built_tiny.edit_json("manifest.json", lambda manifest: manifest["model"]["noise_schedule"].update(clip_sample=True))
    done = _run(built_tiny.folder, "--mode", "mmse", "--fit", "moments")
    assert (done.exit_code, "clipping or history" in done.stderr) == (2, True)
    done = _run(built_tiny.folder, "--variance", "shift")
    assert (done.exit_code, "clip_sample" in done.stderr) == (2, True)
