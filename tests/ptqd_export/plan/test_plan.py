"""The plan as a whole: its defaults, its JSON, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from ptqd_export.plan import load_plan
from tests.ptqd_export.plan.plans import REFUSED, RESOLVED, SHORTEST, Write, problems


def test_shortest_plan_resolves_to_every_default(write: Write) -> None:
    assert load_plan(write()).plan.resolved_json() == RESOLVED


def test_optional_sections_have_the_defaults_of_the_shortest_plan(write: Write, tmp_path: Path) -> None:
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({key: SHORTEST[key] for key in ("model", "sampler", "precisions", "target", "output")}))
    assert load_plan(bare).plan == load_plan(write()).plan


def test_resolved_plan_reads_back_as_itself(write: Write, tmp_path: Path) -> None:
    plan = load_plan(write(quantization={"keep_float": ["mid_block.*"]}, steps={"policy": "fixed", "precisions": ["w8a8"]})).plan
    resolved = tmp_path / "resolved.json"
    resolved.write_text(plan.resolved_json())
    assert load_plan(resolved).plan == plan
    assert load_plan(resolved).plan.resolved_json() == plan.resolved_json()


def test_resolved_bytes_depend_on_neither_place_nor_spelling(write: Write, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else" / "other.json"
    elsewhere.parent.mkdir()
    reordered = dict(reversed(SHORTEST.items())) | {"sampler": {"guidance": 1.5, "eta": 1, "steps": 20, "name": "ddim"}}
    elsewhere.write_text(json.dumps(reordered))
    text = load_plan(elsewhere).plan.resolved_json()
    assert text == load_plan(write()).plan.resolved_json()
    assert str(tmp_path) not in text


def test_resolved_plan_is_ascii(write: Write) -> None:
    text = load_plan(write(output="build/größer")).plan.resolved_json()
    assert text.isascii()
    assert json.loads(text)["output"] == "build/größer"


def test_plan_cannot_be_changed(write: Write) -> None:
    plan = load_plan(write()).plan
    with pytest.raises(ValidationError, match="frozen"):
        plan.sampler.steps = 3
    assert isinstance(plan.precisions, tuple)


@pytest.mark.parametrize(("sections", "problem"), REFUSED, ids=[problem.split(": ")[0] for _, problem in REFUSED])
def test_wrong_plan_is_refused_with_place_found_and_expected(write: Write, sections: dict[str, object], problem: str) -> None:
    assert problems(write(**sections)) == [problem]


def test_all_problems_are_listed_in_one_message(write: Write) -> None:
    assert problems(write(sampler={"name": "ddim", "steps": 0}, precisions=[], target={"name": "tpu"}, steps={"polcy": "snr"})) == [
        "sampler.steps: found 0, expected 1 or more",
        "precisions: found [], expected at least 1 item",
        'steps.polcy: unknown key; did you mean "policy"?',
        "target.name: found \"tpu\", expected 'onnxruntime', 'tensorrt' or 'tensorrt-rtx'",
    ]


def test_a_wrong_item_is_not_also_a_list_that_is_too_short(write: Write) -> None:
    (problem,) = problems(write(precisions=["w9a8"]))
    assert problem.startswith('precisions[0]: found "w9a8"')
