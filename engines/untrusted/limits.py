"""Limits on the numbers in a stored contract: far above every real model, far below what would overload a machine.

A contract is checked before anything is allocated for it. A number beyond these limits means damage or an attack.
"""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveInt

VALUES = 2**28
"""Maximum values in one sample, image or conditioning row: 1 GiB in float32."""

ROWS = 1_000_000
"""Maximum rows of a conditioning table, and maximum classes."""

BATCH = 2**20
TRAIN_TIMESTEPS = 1_000_000
CHAIN_STEPS = 10_000
HISTORY = 5
"""Maximum predictions that a step uses, including its own: those of PLMS, the sampler with the longest memory."""

FILE_BYTES = 2**36
"""Maximum size of a file: 64 GiB, which takes a minute or two to hash."""

MAGNITUDE = 1e12
"""Maximum absolute value of a coefficient; those of real chains stay below 1e5."""


def _within_values(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > VALUES:
        raise ValueError(f"{list(shape)} has more than {VALUES} values")
    return shape


Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A name without control characters, which a terminal would interpret."""

Shape: TypeAlias = Annotated[tuple[PositiveInt, ...], Field(max_length=8), AfterValidator(_within_values)]
Batch: TypeAlias = Annotated[PositiveInt, Field(le=BATCH)]
Label: TypeAlias = Annotated[NonNegativeInt, Field(le=ROWS)]
Coefficient: TypeAlias = Annotated[FiniteFloat, Field(ge=-MAGNITUDE, le=MAGNITUDE)]
Variance: TypeAlias = Annotated[NonNegativeFloat, Field(le=MAGNITUDE**2, allow_inf_nan=False)]
Timestep: TypeAlias = Annotated[FiniteFloat, Field(ge=0, le=TRAIN_TIMESTEPS)]
Scale: TypeAlias = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
"""A guidance scale, or another fraction or factor."""
