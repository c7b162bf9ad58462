"""Builds that a full disk, Ctrl-C or SIGTERM stops: what is told, what is kept, and that the next one is as if nothing had been."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import ptqd_export.stages.run_build as module
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.host.room import NoRoomError
from ptqd_export.cli import main
from ptqd_export.stages import stage_room as room
from ptqd_export.stages.run_build import run_build
from tests.small_disks import grow, largest_file, small_disk

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

STOPS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.fixture
def unforeseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that is looked for before the work is taken by somebody else during it."""
    for name in ("ptqd_export.stages.stage_cache", "ptqd_export.stages.finish.assemble"):
        monkeypatch.setattr(sys.modules[name], "check_room", lambda *_given: None)


def _portable(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("local/")}


@pytest.mark.usefixtures("unforeseen")
def test_a_disk_that_fills_up_while_a_bundle_is_put_together_leaves_the_earlier_one(small_build: Built, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    plan_file = small_build.resumed_in(output)
    run_build(plan_file)
    assert _portable(output) == small_build.portable()
    with pytest.raises(NoRoomError, match=r"found:    .*/graphs/onnxruntime/\w+\.onnx: File too large; .* free"), largest_file(20_000):
        run_build(plan_file)
    assert _portable(output) == small_build.portable()


@pytest.mark.usefixtures("unforeseen")
def test_on_a_small_disk_a_build_ends_with_one_message_and_goes_on_when_there_is_room(small_build: Built, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**26) as disk:
        plan_file = small_build.resumed_in(disk / "bundle")
        filled = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
        grow(disk, filled + 2**18)
        with pytest.raises(NoRoomError, match=f"found:    {disk}/bundle/.*: No space left on device; .* free"):
            run_build(plan_file)
        assert _portable(disk / "bundle") == {}
        with pytest.raises(UsageError, match=r"(?s)has not finished.*run the same `ptqd-export build` again"):
            Bundle.open(disk / "bundle")
        grow(disk, 2**26)
        run_build(plan_file)
        assert _portable(disk / "bundle") == small_build.portable()


def test_room_is_looked_for_before_a_stage(class_build: Built, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        with pytest.raises(NoRoomError, match=rf"(?s)for stage trace\..*found:    {disk}/bundle/local/stages/trace-\w+: 1\.0 MB free"):
            run_build(replace(class_build.plan_file, output=disk / "bundle"))
        assert [path.name for path in disk.rglob("*") if path.is_file()] == [".bundle.lock"]


def test_the_room_of_a_stage_is_about_what_it_takes(class_build: Built) -> None:
    def size(stage: str) -> int:
        return sum(path.stat().st_size for path in class_build.stage(stage).iterdir())

    context, traced = class_build.context, class_build.stage("trace")
    for stage, needed in (
        ("trace", room.traced(context)),
        ("observe", room.observed(traced)),
        ("quantize-w8a8", room.quantized(context, traced)),
    ):
        assert 0.5 < needed / size(stage) < 2
    assert room.states(context) > size("states")
    assert room.walked(context, dict.fromkeys(["fp32", "w8a8", "w4a8"], traced)) == 16 * 64 * 4 * 5  # of state, reference, three outputs


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "exit_code", "word"), STOPS)
def test_a_signal_ends_a_build_with_one_line_and_finished_stages_are_kept(
    small_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, exit_code: int, word: str
) -> None:
    output = tmp_path / "bundle"
    plan_file = small_build.resumed_in(output)
    (stage,) = output.glob("local/stages/statistics-*")
    shutil.rmtree(stage)
    kept = sorted(path.name for path in output.glob("local/stages/*"))
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {**plan_file.plan.model_dump(mode="json"), "model": {"path": str(small_build.plan_file.folder / "model"), "null_class": 3}}
        )
    )

    def stop(*given: Any) -> None:
        (given[-2] / "half").write_text("half a resu")
        signal.raise_signal(number)

    monkeypatch.setattr(module, "make_statistics", stop)
    done = CliRunner().invoke(main, ["build", "--plan", str(plan), "--output", str(output)])
    assert done.exit_code == exit_code
    line = done.stderr.splitlines()[-1]
    assert line == f"{word}: finished stages are kept in {output}/local/stages; the next build without --fresh continues from there"
    assert sorted(path.name for path in output.glob("local/stages/*")) == kept
    assert _portable(output) == {}
