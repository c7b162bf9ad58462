"""The section `steps`: which precision runs at which step."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ptqd_export.plan.plan_errors import expectation
from ptqd_export.plan.section import Section

FULL_PRECISION = "fp32"
"""The name of the network that is not quantized, beside the plan's precisions."""

Cost: TypeAlias = Literal["bit_operations", "time"]
"""What a budget is counted in."""


class StepsSection(Section):
    """Which precision runs at which step."""

    policy: Literal["snr", "budget", "fixed"] = Field(
        default="snr",
        description="snr: chosen from measured noise (the paper); budget: least predicted error at a cost; fixed: the plan lists them",
    )
    precisions: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        default=None, description='for policy fixed: one name for all steps, or one for each; names from the plan\'s precisions, or "fp32"'
    )
    cost: Cost = Field(default="bit_operations", description="for policy budget: what is counted, bit operations or measured milliseconds")
    budget: float | None = Field(default=None, gt=0, description="for policy budget: cost of the chain as a share of full precision's")

    @model_validator(mode="after")
    def _budget_where_asked(self) -> Self:
        if (self.policy == "budget") != (self.budget is not None):
            raise expectation('"budget" beside the policy "budget", and only there')
        return self

    @model_validator(mode="after")
    def _listed_where_fixed(self) -> Self:
        if self.policy == "fixed" and self.precisions is None:
            raise expectation('"precisions" beside the policy "fixed"')
        if self.policy != "fixed" and self.precisions is not None:
            raise expectation(f'no "precisions" beside the policy "{self.policy}", or the policy "fixed"')
        return self
