"""The section `correction`: what is done on the host about the quantization noise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ptqd_export.plan.section import UNIQUE, Section, all_different


class CorrectionSection(Section):
    """What is done on the host about the quantization noise."""

    mode: Literal["none", "ptqd", "signed", "joint", "mmse"] = Field(
        default="joint", description="correction of the network output: ptqd is the paper's"
    )
    parts: Annotated[tuple[Literal["gain", "offset"], ...], Field(strict=False), AfterValidator(all_different), UNIQUE] = Field(
        default=("gain", "offset"), description="parts of the correction of the output; fewer than both are for ablations"
    )
    variance: Literal["schedule", "shift", "none"] = Field(
        default="schedule",
        description="take what quantization added out of the sampler's noise; shift: and treat the rest as a higher noise level; or do not",
    )
