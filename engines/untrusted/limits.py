"""Bounds of what a stored contract may ask for: far beyond every real model, and far from what a machine cannot bear.

A contract is read before anything is allocated for it; a number beyond these is damage or an attack.
"""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveInt

VALUES = 2**28
"""Of one sample, image or row of conditions: 1 GiB in float32."""

ROWS = 1_000_000
"""Of a conditioning table; classes too."""

BATCH = 2**20
TRAIN_TIMESTEPS = 1_000_000
CHAIN_STEPS = 10_000
HISTORY = 5
"""Predictions that a step looks back on, its own with them: as many as PLMS, the sampler with the longest memory."""

FILE_BYTES = 2**36
"""64 GiB: hashing it takes a minute or two."""

MAGNITUDE = 1e12
"""Of a coefficient; the largest of a real chain are below 1e5."""


def _bearable(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > VALUES:
        raise ValueError(f"{list(shape)} has more than {VALUES} values")
    return shape


Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Without control characters, which a terminal would obey."""

Shape: TypeAlias = Annotated[tuple[PositiveInt, ...], Field(max_length=8), AfterValidator(_bearable)]
Batch: TypeAlias = Annotated[PositiveInt, Field(le=BATCH)]
Label: TypeAlias = Annotated[NonNegativeInt, Field(le=ROWS)]
Coefficient: TypeAlias = Annotated[FiniteFloat, Field(ge=-MAGNITUDE, le=MAGNITUDE)]
Variance: TypeAlias = Annotated[NonNegativeFloat, Field(le=MAGNITUDE**2, allow_inf_nan=False)]
Timestep: TypeAlias = Annotated[FiniteFloat, Field(ge=0, le=TRAIN_TIMESTEPS)]
Scale: TypeAlias = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
"""Of guidance, and of other shares and factors."""
