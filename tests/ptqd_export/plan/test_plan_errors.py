"""From pydantic's errors to one message, on a small plan of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from engines.errors import UsageError
from ptqd_export.plan.plan_errors import expectation, expectations, plan_error

PATH = Path("some/plan.json")


def _even(value: int) -> int:
    if value % 2:
        raise expectation("an even number {of things}")
    return value


def _no_letters(values: tuple[str, ...]) -> tuple[str, ...]:
    problems = [((index,), value, "no letter") for index, value in enumerate(values) if value.isalpha()]
    if problems:
        raise expectations(problems)
    return values


class Oven(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    minutes: int = Field(default=1, ge=1, le=60, description="how long it bakes")
    heat: float = Field(default=1.0, ge=0.5)
    fan: bool = False
    shelf: Literal["top", "bottom"] = "top"
    name: str = Field(default="oven", min_length=1)
    trays: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("a",)
    eggs: Annotated[int, AfterValidator(_even)] = 2
    marks: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_no_letters)] = ()
    code: str = Field(default="12", pattern="^[0-9]+$")
    turns: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    sides: Annotated[tuple[int, ...], Field(strict=False)] | str | None = None


class Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    oven: Oven = Field(description="where it bakes")
    title: str = Field(default="", description="what it is called")
    plain: str = ""


class Bare(BaseModel):
    bare: int


def _error(data: Any, model: type[BaseModel] = Recipe) -> UsageError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return plan_error(caught.value, model, PATH)


def _lines(data: Any) -> list[str]:
    """The lines between the heading and the mend."""
    heading, *lines, mend = str(_error(data)).split("\n")
    assert heading == "some/plan.json is not a valid plan"
    assert mend == "  mend:     correct these keys; `ptqd-export schema` describes every key"
    return [line.removeprefix("  ") for line in lines]


def test_it_is_an_error_of_usage() -> None:
    assert _error({}).exit_code == 2


@pytest.mark.parametrize(
    ("oven", "line"),
    [
        ({"mintues": 3}, 'oven.mintues: unknown key; did you mean "minutes"?'),
        ({"Fan": True}, 'oven.Fan: unknown key; did you mean "fan"?'),
        ({"zzz": 3}, "oven.zzz: unknown key; known keys: minutes, heat, fan, shelf, name, trays, eggs, marks, code, turns, sides"),
        ({"minutes": "3"}, 'oven.minutes: found "3", expected a whole number'),
        ({"turns": "many"}, "oven.turns: found \"many\", expected a whole number or 'auto'"),
        ({"turns": 0}, "oven.turns: found 0, expected 1 or more or 'auto'"),
        ({"sides": 3}, "oven.sides: found 3, expected a list or a string"),
        ({"minutes": 3.0}, "oven.minutes: found 3.0, expected a whole number"),
        ({"minutes": True}, "oven.minutes: found true, expected a whole number"),
        ({"minutes": None}, "oven.minutes: found null, expected a whole number"),
        ({"minutes": 0}, "oven.minutes: found 0, expected 1 or more"),
        ({"minutes": 61}, "oven.minutes: found 61, expected 60 or less"),
        ({"heat": "warm"}, 'oven.heat: found "warm", expected a number'),
        ({"heat": 0}, "oven.heat: found 0, expected 0.5 or more"),
        ({"heat": float("inf")}, "oven.heat: found Infinity, expected a finite number"),
        ({"fan": 1}, "oven.fan: found 1, expected true or false"),
        ({"shelf": "middle"}, "oven.shelf: found \"middle\", expected 'top' or 'bottom'"),
        ({"shelf": "Botom"}, "oven.shelf: found \"Botom\", expected 'top' or 'bottom'; did you mean \"bottom\"?"),
        ({"name": 3}, "oven.name: found 3, expected a string"),
        ({"name": ""}, 'oven.name: found "", expected a string that is not empty'),
        ({"trays": "ab"}, 'oven.trays: found "ab", expected a list'),
        ({"trays": []}, "oven.trays: found [], expected at least 1 item"),
        ({"trays": ["a", 2]}, "oven.trays[1]: found 2, expected a string"),
        ({"eggs": 3}, "oven.eggs: found 3, expected an even number {of things}"),
        ({"code": "x"}, "oven.code: found \"x\", expected String should match pattern '^[0-9]+$'"),
    ],
)
def test_one_line_says_where_what_and_what_instead(oven: dict[str, object], line: str) -> None:
    assert _lines({"oven": oven}) == [line]


def test_unknown_key_at_the_top() -> None:
    assert _lines({"oven": {}, "tilte": "x"}) == ['tilte: unknown key; did you mean "title"?']


def test_section_that_is_no_object() -> None:
    assert _lines({"oven": 3}) == ["oven: found 3, expected an object"]


def test_missing_key_is_described() -> None:
    assert _lines({}) == ["oven: missing; expected where it bakes"]


def test_missing_key_without_description() -> None:
    assert "\n  bare: missing; expected a value\n" in str(_error({}, Bare))


def test_validator_can_find_several_problems_below_its_value() -> None:
    assert _lines({"oven": {"marks": ["a", "1", "b"]}}) == [
        'oven.marks[0]: found "a", expected no letter',
        'oven.marks[2]: found "b", expected no letter',
    ]


def test_every_problem_is_listed() -> None:
    assert _lines({"oven": {"minutes": 0, "fann": True}, "title": 3}) == [
        "oven.minutes: found 0, expected 1 or more",
        'oven.fann: unknown key; did you mean "fan"?',
        "title: found 3, expected a string",
    ]


def test_long_value_is_cut() -> None:
    (line,) = _lines({"oven": {"minutes": "x" * 500}})
    assert line == f'oven.minutes: found "{"x" * 56}..., expected a whole number'


def test_value_in_another_script_is_shown_as_written() -> None:
    assert _lines({"oven": {"minutes": "fünf"}}) == ['oven.minutes: found "fünf", expected a whole number']
