"""The section `calibration`: what the statistics are measured on."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from engines.untrusted.limits import BATCH, ROWS
from ptqd_export.plan.plan_errors import expectation
from ptqd_export.plan.section import Section

DEVICE = r"^(cpu|cuda(:\d+)?|mps)$"


def _device(name: str) -> str:
    if not re.fullmatch(DEVICE, name):
        raise expectation('"cpu", "cuda", "cuda:0" or "mps"')
    return name


class CalibrationSection(Section):
    """What the statistics are measured on."""

    samples: int = Field(default=512, ge=1, le=ROWS, description="number of samples that walk the chain for the correction's statistics")
    batch_size: int = Field(default=64, ge=1, le=BATCH, description="number of samples in one network call")
    activation_samples: int = Field(
        default=256, ge=1, le=ROWS, description="number of states, drawn across the timesteps, for the activation ranges"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the calibration samples")
    trajectory: Literal["quantized", "fp"] = Field(
        default="quantized",
        description="chain whose states are visited: the corrected quantized sampler's, or full precision's (as in the reference code)",
    )
    verify_states: int = Field(
        default=64, ge=1, le=ROWS, description="number of these states that the graphs of a precision are held against their oracles at"
    )
    device: Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": DEVICE})] = Field(
        default="cpu",
        description="device on which PyTorch observes activations, learns rounding and verifies graphs: cpu, cuda, cuda:0 or mps",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of PyTorch's network while it observes activations and learns rounding"
    )
