"""The JSON Schema of a plan: it describes every key, and takes and refuses what the reader does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ptqd_export.plan import Plan
from tests.ptqd_export.plan.plans import REFUSED, RESOLVED, SHORTEST


def _fields(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield f"{at}{name}", field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{at}{name}.")


def test_every_key_is_described() -> None:
    fields = dict(_fields(Plan))
    assert "sampler.eta" in fields
    assert [name for name, description in fields.items() if not description] == []


TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def _accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """A validator of the part of JSON Schema that a plan uses."""
    if "$ref" in schema:
        return _accepts(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    if "anyOf" in schema:
        return any(_accepts(option, value, root) for option in schema["anyOf"])
    if not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if isinstance(value, dict):
        assert schema["additionalProperties"] is False
        if "oneOf" in schema and sum(_chooses(option, value) for option in schema["oneOf"]) != 1:
            return False
        return set(schema.get("required", ())) <= set(value) <= set(schema["properties"]) and all(
            _accepts(schema["properties"][key], inner, root) for key, inner in value.items()
        )
    if isinstance(value, list):
        different = not schema.get("uniqueItems") or len(set(value)) == len(value)
        return len(value) >= schema.get("minItems", 0) and different and all(_accepts(schema["items"], inner, root) for inner in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if value is not None and "exclusiveMinimum" in schema:
        return bool(value > schema["exclusiveMinimum"])
    return value is None or schema.get("minimum", value) <= value <= schema.get("maximum", value)


def _chooses(option: dict[str, Any], value: dict[str, Any]) -> bool:
    """Whether an object has the keys that one choice requires, and the others as it says."""
    kinds = {key: TYPES[inner["type"]] for key, inner in option["properties"].items()}
    return set(option["required"]) <= set(value) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


@pytest.mark.parametrize("plan", [SHORTEST, json.loads(RESOLVED)], ids=["shortest", "resolved"])
def test_schema_accepts_plans(plan: dict[str, Any]) -> None:
    schema = Plan.model_json_schema()
    assert _accepts(schema, plan, schema)


@pytest.mark.parametrize(("sections", "problem"), REFUSED, ids=[problem.split(": ")[0] for _, problem in REFUSED])
def test_schema_refuses_what_the_reader_refuses(sections: dict[str, Any], problem: str) -> None:
    schema = Plan.model_json_schema()
    assert not _accepts(schema, SHORTEST | sections, schema), problem
