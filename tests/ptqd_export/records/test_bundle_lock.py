"""One writer a bundle: whoever comes second is told; what a killed one left is removed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from engines.errors import UsageError
from ptqd_export.cli import main
from ptqd_export.records.bundle_lock import UNFINISHED, writing_to

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

MODEL = Path(__file__).parents[3] / "tools" / "digits" / "model"


def _assert_told(done: Result, bundle: Path) -> None:
    assert done.exit_code == 1
    assert f"error: Another process is writing to {bundle}.\n  found:    process {os.getpid()} on " in done.stderr


def _kept(folder: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arguments", [["schedule", "--name", "other", "--mode", "mmse"], ["report"]])
def test_commands_that_write_to_a_bundle_wait_for_nobody_and_change_nothing(own_tiny: TinyBundle, arguments: list[str]) -> None:
    with writing_to(own_tiny.folder):
        before = _kept(own_tiny.folder)
        _assert_told(CliRunner().invoke(main, [arguments[0], str(own_tiny.folder), *arguments[1:]]), own_tiny.folder)
        assert _kept(own_tiny.folder) == before


def test_a_second_build_into_the_folder_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    plan = {"model": {"path": str(MODEL)}, "sampler": {"name": "ddim", "steps": 2}, "precisions": ["w8a8"]}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "target": {"name": "onnxruntime"}, "output": str(output)}))
    with writing_to(output):
        (output / "local" / "stages" / ".unfinished-trace").mkdir(parents=True)
        _assert_told(CliRunner().invoke(main, ["build", "--plan", str(tmp_path / "plan.json"), "--fresh"]), output)
        assert (output / "local" / "stages" / ".unfinished-trace").is_dir()


def test_readers_and_a_report_elsewhere_need_no_lock(own_tiny: TinyBundle, tmp_path: Path) -> None:
    with writing_to(own_tiny.folder):
        done = CliRunner().invoke(main, ["report", str(own_tiny.folder), "--output", str(tmp_path / "report.html")])
        assert "plan.json" in done.stderr  # this bundle has none: it was read
    assert "Another process" not in done.stderr


def test_what_a_killed_writer_left_is_removed_and_nothing_else(own_tiny: TinyBundle) -> None:
    folder = own_tiny.folder
    machine = folder / "local" / "some-machine"
    left = [folder / ".manifest.json.x1.part", folder / "graphs" / "onnxruntime" / ".w8a8.onnx.x2.part", machine / ".times.json.x3.part"]
    left += [folder / UNFINISHED / "manifest.json", folder / "local" / "walk-x4" / "states"]
    kept = [
        machine / "engines" / ".w8a8.engine.x5.part",
        machine / "times.json",
        folder / "local" / "stages" / ".unfinished-x6" / "block-1",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    before = {path: content for path, content in _kept(folder).items() if Path(path) not in left}
    with writing_to(folder):
        assert _kept(folder) == {**before, (folder / "local" / ".bundle.lock").as_posix(): (folder / "local" / ".bundle.lock").read_bytes()}
    assert all(path.exists() for path in kept)


def test_a_folder_that_cannot_be_written_is_an_error_of_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="The output folder cannot be written"), writing_to(tmp_path / "file"):
        pass
