"""The section `steps`: which precision runs at which step."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ptqd_export.plan.plan_errors import expectation
from ptqd_export.plan.reuse import ReusingStepsSection
from ptqd_export.plan.section import Section

FULL_PRECISION = "fp32"
"""Name of the network that is not quantized. It exists besides the plan's precisions."""

Cost: TypeAlias = Literal["bit_operations", "time"]
"""Unit of a budget."""


class StepsSection(Section):
    """Which precision runs at which step."""

    policy: Literal["snr", "budget", "fixed"] = Field(
        default="snr",
        description="snr: by measured noise, as in the paper; budget: least predicted error at a cost; fixed: as listed in precisions",
    )
    precisions: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        default=None,
        description='for policy fixed: one name for all steps, or one for each step; names from the plan\'s precisions, or "fp32"',
    )
    cost: Cost = Field(default="bit_operations", description="for policy budget: its unit, bit operations or measured milliseconds")
    reuse: ReusingStepsSection | None = Field(
        default=None,
        description="which steps reuse features at a cut of reuse.cuts; null: none or, for policy budget, those that it chooses, at "
        "the first cut",
    )
    budget: float | None = Field(default=None, gt=0, description="for policy budget: cost of the chain as a fraction of full precision's")

    @model_validator(mode="after")
    def _budget_where_asked(self) -> Self:
        if (self.policy == "budget") != (self.budget is not None):
            raise expectation('"budget" with the policy "budget", and only with it')
        return self

    @model_validator(mode="after")
    def _reusing_steps_once(self) -> Self:
        if self.reuse is None:
            return self
        given = (self.reuse.every is not None) + (self.reuse.steps is not None)
        if self.policy == "budget" and (given or self.reuse.extrapolate):
            raise expectation('no "every", "steps" or "extrapolate" of "reuse" with the policy "budget", which chooses the steps')
        if self.policy != "budget" and given != 1:
            raise expectation('either "every" or "steps" of "reuse"')
        return self

    @model_validator(mode="after")
    def _listed_where_fixed(self) -> Self:
        if self.policy == "fixed" and self.precisions is None:
            raise expectation('"precisions" with the policy "fixed"')
        if self.policy != "fixed" and self.precisions is not None:
            raise expectation(f'no "precisions" with the policy "{self.policy}", or the policy "fixed"')
        return self
