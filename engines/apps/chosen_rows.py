"""The conditioning rows that a user asks for, checked against the bundle's table."""

from __future__ import annotations

from typing import Literal

import numpy as np

from engines.arrays import Int64
from engines.bundle.manifest import ConditioningRecord
from engines.chain.noise import NoiseSource
from engines.chain.sampling import rows_of
from engines.errors import UsageError


def chosen_rows(
    classes: tuple[int, ...] | Literal["all"] | None, samples: Int64, noise: NoiseSource, conditioning: ConditioningRecord | None
) -> Int64 | None:
    """Return the row of each sample, or None if the model is unconditional."""
    if conditioning is None:
        if classes is not None:
            raise UsageError("The model is unconditional.", found="classes", expected="no classes")
        return None
    chosen = tuple(range(conditioning.rows)) if classes == "all" else classes
    for row in chosen or ():
        if not 0 <= row < conditioning.rows:
            raise UsageError("A class is out of range.", found=row, expected=f"0 to {conditioning.rows - 1}")
    return rows_of(samples, noise, conditioning.rows, None if chosen is None else np.array(chosen, dtype=np.int64))
