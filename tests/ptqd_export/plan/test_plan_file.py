"""A plan's file: what its paths mean, and files that are no plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import UsageError
from ptqd_export.plan import Plan, PlanFile, load_plan
from tests.ptqd_export.plan.plans import RESOLVED, SHORTEST, Write


def test_paths_are_relative_to_the_plan_not_to_the_caller(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(model={"path": "../model", "conditions": "prompts.npz"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plan_file = load_plan(Path("../plan.json"))
    monkeypatch.chdir("/")
    assert plan_file.model_path.resolve() == tmp_path.parent / "model"
    assert plan_file.conditions_path is not None
    assert plan_file.conditions_path.resolve() == tmp_path / "prompts.npz"
    assert plan_file.output_path.resolve() == tmp_path / "build" / "digits"


def test_absolute_path_stays_and_conditions_are_optional(write: Write) -> None:
    plan_file = load_plan(write(model={"path": "/models/x"}))
    assert plan_file.model_path == Path("/models/x")
    assert plan_file.conditions_path is None


def test_output_of_the_command_line_wins_and_leaves_the_plan_alone() -> None:
    plan = Plan.model_validate(SHORTEST)
    plan_file = PlanFile(plan, Path("/plans"), output=Path("here"))
    assert plan_file.output_path == Path("here")
    assert plan_file.plan.resolved_json() == RESOLVED


def test_missing_plan_says_how_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(UsageError) as caught:
        load_plan(path)
    assert str(caught.value) == (
        f"The plan is missing.\n  found:    no file {path}\n  expected: a plan.json\n"
        "  mend:     write one with `ptqd-export init`, or correct --plan"
    )


def test_plan_that_is_not_json_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"model": {"path": "x",}}')
    with pytest.raises(UsageError, match=r"is not JSON\.\n  found:    line 1, column \d+"):
        load_plan(path)
