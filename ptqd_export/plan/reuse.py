"""The section `reuse`: where networks are cut, so that steps can reuse features of earlier steps."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from ptqd_export.plan.section import UNIQUE, Section, all_different

CutName: TypeAlias = Annotated[str, Field(min_length=1, max_length=100)]
ReusingSteps: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1), UNIQUE, AfterValidator(all_different)
]


class ReuseSection(Section):
    """Where networks are cut, so that steps can reuse the deep features of an earlier step."""

    cuts: Literal["auto"] | Annotated[tuple[CutName, ...], Field(strict=False), UNIQUE, AfterValidator(all_different)] = Field(
        default=(),
        description="cuts of every network, such as skip_3 of a U-Net or residual_4_20 of a transformer; auto: the one whose steps compute "
        "most, but at most half",
    )


class ReusingStepsSection(Section):
    """Which steps reuse features of the last step that did not. For the policy `budget`, which chooses the steps, only where."""

    cut: CutName | None = Field(default=None, description="one of reuse.cuts; null takes the first")
    every: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="every such step computes everything, the first included; the steps between reuse its features"
    )
    steps: ReusingSteps | None = Field(default=None, description="numbers of the steps that reuse features, instead of every")

    extrapolate: bool = Field(
        default=False, description="not with budget: extrapolate the features from the last two steps that computed everything"
    )

    def of(self, count: int) -> frozenset[int]:
        """Return the numbers of the steps that reuse features in a chain of `count` steps."""
        if self.every is not None:
            return frozenset(step for step in range(count) if step % self.every)
        return frozenset(self.steps or ())
