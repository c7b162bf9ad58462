"""A build run again: nothing is made twice, byte by byte the same comes out, and what fails leaves no half bundle."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ptqd_export.stages.run_build as module
from engines.bundle.bundle import Bundle
from engines.errors import PtqdError
from ptqd_export.plan import Plan
from ptqd_export.stages.reporter import BuildProgress
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.whole_builds import FinishedStages, portable, remade_stages

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def test_second_run_reuses_every_stage_and_writes_the_same_bytes_elsewhere(
    small_build: Built, tmp_path: Path, finished: FinishedStages
) -> None:
    plan_file = small_build.resumed_in(tmp_path / "bundle")
    run_build(plan_file, on_progress=finished)
    assert {stage.stage for stage in finished} == {"trace", "states", "observe", "quantize-w8a8", "statistics", "check", "pictures"}
    assert all(stage.reused for stage in finished)
    assert portable(tmp_path / "bundle") == small_build.portable()
    run_build(plan_file, on_progress=finished)  # over its own bundle
    assert portable(tmp_path / "bundle") == small_build.portable()


def _check_told(told: list[BuildProgress]) -> None:
    """Every stage is told to its end, once, in the order that was planned."""
    stages = [progress.stage for progress in told if progress.finished]
    assert stages == [*dict.fromkeys(progress.stage for progress in told)]
    for stage in stages:
        of_stage = [progress for progress in told if progress.stage == stage]
        done = [progress.done for progress in of_stage]
        assert done == sorted(done)
        assert of_stage[-1].finished
        assert done[-1] == (of_stage[-1].total or 0)
        assert of_stage[-2].done == done[-1], "the last piece of work is told before the end"
        assert {progress.reused for progress in of_stage} == {False}
    planned = told[-1].stages_left
    assert planned == ()
    assert [progress.stages_left for progress in told if progress.finished] == [tuple(stages[i + 1 :]) for i in range(len(stages))]
    first = next(progress for progress in told if progress.estimate is not None)
    assert (first.stage, first.done) == ("states", 0)
    assert first.estimate is not None
    assert [*first.estimate.seconds] == ["states", *first.stages_left]
    assert first.seconds_left == pytest.approx(sum(first.estimate.seconds.values()))
    assert told[-1].seconds_left == 0


def test_fresh_build_writes_the_same_bytes_and_nothing_on_the_terminal(
    small_build: Built, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[BuildProgress] = []
    run_build(small_build.resumed_in(tmp_path / "bundle"), fresh=True, on_progress=told.append)
    assert capfd.readouterr() == ("", "")
    _check_told(told)
    assert portable(tmp_path / "bundle") == small_build.portable()


def test_interrupted_build_leaves_no_manifest_and_resumes(
    small_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: FinishedStages
) -> None:
    output = tmp_path / "bundle"
    plan_file = small_build.resumed_in(output)
    shutil.rmtree(next(output.glob("local/stages/statistics-*")))

    def fail(*_given: Any) -> None:
        raise PtqdError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_statistics", fail)
        with pytest.raises(PtqdError, match="the power went"):
            run_build(plan_file, on_progress=finished)
    assert portable(output) == {}
    assert not list(output.glob("local/stages/.unfinished*"))
    run_build(plan_file, on_progress=finished)
    assert list(remade_stages(finished)) == ["statistics"]
    assert portable(output) == small_build.portable()


def test_build_that_fails_while_it_writes_the_bundle_leaves_the_earlier_one_whole(
    small_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: FinishedStages
) -> None:
    plan_file = small_build.resumed_in(tmp_path / "bundle")
    run_build(plan_file, on_progress=finished)
    assert finished

    def fail(*_given: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(sys.modules["ptqd_export.stages.finish.assemble"], "statistics", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run_build(plan_file, on_progress=finished)
    assert portable(tmp_path / "bundle") == small_build.portable()


def test_files_of_an_earlier_plan_are_removed(class_build: Built, tmp_path: Path, finished: FinishedStages) -> None:
    output = Path(shutil.copytree(class_build.folder, tmp_path / "bundle"))
    plan = Plan.model_validate(class_build.plan_file.plan.model_dump(mode="json") | {"precisions": ["w8a8"]})
    run_build(replace(class_build.plan_file, plan=plan, output=output), on_progress=finished)
    assert {path.name.partition(".")[0] for path in (output / "graphs" / "onnxruntime").iterdir()} == {"fp32", "w8a8"}
    assert {path.stem for path in (output / "statistics" / "onnxruntime").iterdir()} == {"w8a8"}
    assert {path.name.partition("-")[0] for path in (output / "local" / "stages").iterdir()} == {
        "trace", "states", "observe", "quantize", "statistics", "check", "pictures",
    }  # fmt: skip
    assert set(portable(output)) == {"manifest.json", *Bundle.open(output).manifest.files}
    assert len(finished) == 7
