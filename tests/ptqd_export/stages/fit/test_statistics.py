"""What the plan says of corrections reaches the schedule that is built."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calib.walk.race import MARGIN
from engines.backends.choice import on_onnxruntime
from engines.bundle.bundle import Bundle
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from ptqd_export.commands.built_engines_check import check_on
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from ptqd_export.stages.build_check import check_build
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.run_build import run_build

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def test_parts_and_shift_are_those_of_the_plan(class_build: Built, tmp_path: Path) -> None:
    correction = {"mode": "mmse", "parts": ["offset"], "variance": "shift"}
    steps = {"policy": "fixed", "precisions": ["w3a8"]}
    run_build(class_build.resumed_in(tmp_path / "out", precisions=["w3a8"], correction=correction, steps=steps))
    schedule = Bundle.open(tmp_path / "out").schedule()
    assert schedule.correction.model_dump(mode="json") == correction
    fitted = [step.corrections["w3a8"] for step in schedule.steps]
    assert all(correction.gain == (1.0,) for correction in fitted)
    assert any(correction.offset != (0.0,) for correction in fitted)
    assert [step.shifted is not None for step in schedule.steps] == [False, *(one.unabsorbed_variance > 0 for one in fitted[:-2]), False]


@pytest.mark.usefixtures("class_build")
@pytest.mark.parametrize(
    ("sections", "named"),
    [({"sampler": {"clip_sample": True}}, "clip_sample"), ({"calibration": {"trajectory": "fp"}}, "trajectory")],
)
def test_a_chain_that_cannot_be_shifted_is_told_before_the_build(class_build: Built, sections: dict[str, Any], named: str) -> None:
    content = class_build.plan_file.plan.model_dump(mode="json") | {"correction": {"variance": "shift"}}
    changed = {name: content[name] | section for name, section in sections.items()}
    with pytest.raises(UsageError, match=named):
        check_build(BuildContext(PlanFile(Plan.model_validate(content | changed), class_build.plan_file.folder)))


def test_chosen_corrections_follow_from_what_the_bundle_stores(class_build: Built, tmp_path: Path) -> None:
    run_build(class_build.resumed_in(tmp_path / "out", correction={"mode": "auto"}))
    bundle = Bundle.open(tmp_path / "out")
    schedule = bundle.schedule()
    assert schedule.correction.mode == "auto"
    chains = ("w3a8", "w4a4", "w4a8", "w8a8", None)
    chosen = {one.chain: one for one in schedule.judged if one.chosen}
    assert set(chosen) == {one.chain for one in schedule.judged} == set(chains)
    assert all(one.behind_db >= -MARGIN * one.standard_error_db for one in schedule.judged)
    walked = Schedule.model_validate_json(bundle.read("statistics/onnxruntime/walk.json"))
    assert walked.correction.mode == "joint"
    assert check_on(bundle, on_onnxruntime(bundle)) < 0.02, "the states of the statistics are those of the walk's own schedule"
    added = add_schedule(tmp_path / "out", "same", ScheduleRequest())
    assert added.fit == "moments"
    alone = [[one for one in made.judged if one.chain is not None] for made in (added.schedule, schedule)]
    assert alone[0] == alone[1], "the moments tell everything but the error that the walk's own chain accumulated"
    assert [step.corrections for step in added.schedule.steps] == [step.corrections for step in schedule.steps]


def test_the_built_schedule_follows_from_what_the_bundle_stores(class_build: Built, tmp_path: Path) -> None:
    shutil.copytree(class_build.folder, tmp_path / "out")
    added = add_schedule(tmp_path / "out", "same", ScheduleRequest())
    assert added.fit == "moments"
    assert added.schedule == Bundle.open(tmp_path / "out").schedule()
    walked = add_schedule(tmp_path / "out", "walked", ScheduleRequest(fit="walk"))
    assert set(walked.schedule.precisions) == {"fp32", "w3a8", "w4a4", "w4a8", "w8a8"}
    assert walked.schedule == added.schedule
