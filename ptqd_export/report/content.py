"""The data of the page: a bundle, its default chain step by step, and what was measured with it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from calib.quantizers.rules.precision import GRAMMAR, PATTERN
from engines.bundle.bundle import Bundle
from engines.chain.schedule import Schedule
from engines.errors import BundleError
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.report.chain_steps import ChainSteps, PrecisionSteps, chain_steps, precision_steps, sampler_table, steps_at_cut
from ptqd_export.report.evidence import Evidence


@dataclass(frozen=True)
class Content:
    """A bundle, and what was measured with it. Everything is read on first use.

    Raises:
        BundleError: the manifest and the default schedule do not fit together.
    """

    bundle: Bundle
    evidence: Evidence

    def __post_init__(self) -> None:
        known, schedule = self.bundle.manifest.precisions, self.schedule
        if missing := {FULL_PRECISION, *schedule.precisions} - known.keys():
            raise BundleError("The bundle lacks a precision of its schedule.", found=", ".join(known), expected=", ".join(sorted(missing)))
        for name in known:
            if not re.fullmatch(PATTERN, name):
                raise BundleError("The manifest names an unknown precision.", found=name, expected=GRAMMAR)
        expected = sampler_table(self.bundle, schedule).steps  # plms takes one step more than requested
        if len(schedule.steps) != expected:
            raise BundleError(
                "The length of the schedule differs from its sampler's.", found=f"{len(schedule.steps)} steps", expected=str(expected)
            )

    @cached_property
    def schedule(self) -> Schedule:
        return self.bundle.schedule()

    @cached_property
    def chain(self) -> ChainSteps:
        return chain_steps(self.schedule, sampler_table(self.bundle, self.schedule))

    @cached_property
    def steps(self) -> list[PrecisionSteps]:
        """Figures of every quantized precision, the one with the fewest bit operations first."""
        return precision_steps(self.bundle, self.schedule, sampler_table(self.bundle, self.schedule))

    @cached_property
    def measured(self) -> list[PrecisionSteps]:
        """Figures of every quantized precision and of every network at the cut of the schedule."""
        return [*self.steps, *steps_at_cut(self.bundle, self.schedule, sampler_table(self.bundle, self.schedule))]

    @property
    def taken(self) -> Counter[str]:
        """Number of steps that each precision takes."""
        return Counter(self.chain.precision)

    @property
    def precisions(self) -> list[str]:
        """Full precision first, then the others by falling bit operations."""
        return [FULL_PRECISION, *(name for name in reversed(self.bundle.manifest.precisions) if name != FULL_PRECISION)]

    @property
    def row_word(self) -> str:
        """What the page calls a conditioning row."""
        conditioning = self.bundle.manifest.model.conditioning
        return "class" if conditioning is not None and conditioning.file is None else "row"
