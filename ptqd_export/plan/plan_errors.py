"""Turn pydantic's list of errors in a plan into one UsageError, with a line for each error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from engines.errors import UsageError, did_you_mean

Location: TypeAlias = tuple[int | str, ...]
Problem: TypeAlias = tuple[Location, object, str]
"""Location below the validated value, value found, what was expected."""

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "an object",
    "too_short": "at least {min_length} item",
    "string_too_short": "a string that is not empty",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "greater_than": "more than {gt}",
    "literal_error": "{expected}",
    "expectation": "{expected}",
}
"""What was expected, in JSON's terms, by pydantic's type of error. The braces are filled from the error's context."""


def expectation(expected: str) -> PydanticCustomError:
    """Return the error that a validator of the plan raises. `expected` completes `LOCATION: found ..., expected ...`."""
    return PydanticCustomError("expectation", "Input should be {expected}", {"expected": expected})


def one_of(name: str, known: Iterable[str]) -> str:
    """Return what was expected instead of an unknown name: the known names, and the most similar one."""
    names = tuple(known)
    return "; ".join(filter(None, (" or ".join(f'"{one}"' for one in names), did_you_mean(name, names))))


def expectations(problems: Sequence[Problem]) -> ValidationError:
    """Return several such errors as one exception."""
    lines: list[InitErrorDetails] = [{"type": expectation(expected), "loc": at, "input": found} for at, found, expected in problems]
    return ValidationError.from_exception_data("plan", lines)


def plan_error(error: ValidationError, plan_type: type[BaseModel], source: Path | str) -> UsageError:
    """Return the UsageError that lists everything wrong in the plan from `source`."""
    problems = [f"  {_problem(details, plan_type)}" for details in _independent(error.errors(include_url=False))]
    return UsageError(
        "\n".join([f"{source} is not a valid plan", *problems]),
        mend="correct these keys; `ptqd-export schema` describes every key",
    )


def _independent(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drop errors about lists that are too short only because their items are wrong."""
    inside = {problem["loc"][:-1] for problem in problems}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in inside]


def _problem(details: ErrorDetails, plan_type: type[BaseModel]) -> str:
    location = _dotted(details["loc"])
    if details["type"] == "extra_forbidden":
        return f"{location}: unknown key; {_hint(details['loc'], plan_type)}"
    if details["type"] == "missing":
        return f"{location}: missing; expected {_description(details['loc'], plan_type)}"
    return f"{location}: found {_shortened(details['input'])}, expected {_expected(details)}"


def _dotted(location: Location) -> str:
    """Write `("steps", "precisions", 3)` as `steps.precisions[3]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _hint(location: Location, plan_type: type[BaseModel]) -> str:
    known = list(_section(location, plan_type).model_fields)
    return did_you_mean(str(location[-1]), known) or f"known keys: {', '.join(known)}"


def _description(location: Location, plan_type: type[BaseModel]) -> str:
    return _section(location, plan_type).model_fields[str(location[-1])].description or "a value"


def _section(location: Location, plan_type: type[BaseModel]) -> type[BaseModel]:
    """Return the model that holds the key at the end of the location."""
    section = plan_type
    for key in location[:-1]:
        annotation, *_ = [kind for kind in _members(section.model_fields[str(key)].annotation) if kind is not NoneType]
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel), f"{key} is not a section"
        section = annotation
    return section


def _members(annotation: object) -> tuple[object, ...]:
    """Return the types of a union, or the one type."""
    return get_args(annotation) or (annotation,)


def _expected(details: ErrorDetails) -> str:
    template = _EXPECTED.get(details["type"])
    expected = template.format(**details.get("ctx", {})) if template else details["msg"]
    known = re.findall("'([^']*)'", expected) if details["type"] == "literal_error" else ()
    return "; ".join(filter(None, (expected, did_you_mean(str(details["input"]), known))))


def _shortened(value: object, width: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= width else f"{text[: width - 3]}..."
