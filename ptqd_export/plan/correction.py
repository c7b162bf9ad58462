"""The section `correction`: how the quantization noise is corrected on the host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ptqd_export.plan.section import UNIQUE, Section, all_different


class CorrectionSection(Section):
    """How the quantization noise is corrected on the host."""

    mode: Literal["auto", "none", "ptqd", "signed", "bounded", "joint", "mmse"] = Field(
        default="auto",
        description="how gain and offset of the network output are fitted; ptqd is the paper's way; auto takes the way whose held-out "
        "chains end nearest to full precision's",
    )
    parts: Annotated[tuple[Literal["gain", "offset", "chain"], ...], Field(strict=False), AfterValidator(all_different), UNIQUE] = Field(
        default=("gain", "offset"),
        description="parts of that correction; leaving gain or offset out is for ablations; chain: also bring mean and variance back to "
        "those of the full-precision chain",
    )
    variance: Literal["schedule", "drift", "q-drift", "shift", "none"] = Field(
        default="schedule",
        description="schedule: take the variance that quantization adds out of the sampler's noise; drift: and the rest out of the "
        "predicted noise; q-drift: the drift of the paper of this name instead; shift: also treat the rest as a higher noise level; "
        "none: neither",
    )
