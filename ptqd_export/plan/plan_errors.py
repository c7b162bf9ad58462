"""Turn pydantic's list of errors in a plan into one UsageError, with a line for each error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TypeAlias, get_args, get_origin

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
    problems = [f"  {problem}" for problem in _problems(_independent(error.errors(include_url=False)), plan_type)]
    return UsageError(
        "\n".join([f"{source} is not a valid plan", *problems]),
        mend="correct these keys; `ptqd-export schema` describes every key",
    )


def _independent(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drop errors about lists that are too short only because their items are wrong."""
    inside = {problem["loc"][:-1] for problem in problems}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in inside]


def _problems(found: Iterable[ErrorDetails], plan_type: type[BaseModel]) -> list[str]:
    """Describe every problem. A value that fits none of several types is one problem, and any of them was expected."""
    expected = dict[str, list[str]]()
    for details in found:
        place = _without_types(details["loc"], plan_type)
        location = _dotted(place)
        if details["type"] == "extra_forbidden":
            expected[f"{location}: unknown key; {_hint(place, plan_type)}"] = []
        elif details["type"] == "missing":
            expected[f"{location}: missing; expected {_description(place, plan_type)}"] = []
        else:
            expected.setdefault(f"{location}: found {_shortened(details['input'])}, expected ", []).append(_expected(details))
    return [problem + " or ".join(dict.fromkeys(wanted)) for problem, wanted in expected.items()]


def _without_types(location: Location, plan_type: type[BaseModel]) -> Location:
    """Leave out the types that pydantic adds to the location of a value that may be of several types."""
    section: type[BaseModel] | None = plan_type
    kept, named = list[int | str](), False
    for part in location:
        if named:  # a key that the user chose
            kept.append(part)
            named = False
            continue
        if section is None and not isinstance(part, int):
            continue
        kept.append(part)
        field = None if section is None else section.model_fields.get(str(part))
        kinds = () if field is None else _members(field.annotation)
        named = field is not None and get_origin(field.annotation) is dict
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return tuple(kept)


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
    section, named = plan_type, False
    for key in location[:-1]:
        if named:
            named = False
            continue
        whole = section.model_fields[str(key)].annotation
        named = get_origin(whole) is dict
        annotation, *_ = [kind for kind in _members(whole) if kind not in (NoneType, str)]
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
