"""What the sections of a plan have in common."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from ptqd_export.plan.plan_errors import expectation

WrittenPath: TypeAlias = Annotated[str, Field(min_length=1)]

UNIQUE = Field(json_schema_extra={"uniqueItems": True})
"""JSON Schema for a list whose items all differ; `all_different` checks this."""


class Section(BaseModel):
    """Part of a plan. It is immutable, has no unknown keys, and converts no type into another silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise expectation("names that are all different")
    return names
