"""NaN and infinity, found by one sum: either makes it one of the two, and no array of flags is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import PtqdError


class NotFiniteError(PtqdError):
    """A network, or a step, gave NaN or infinity."""


def is_finite(values: NDArray[Any]) -> bool:
    """Whether all values are."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    return math.isfinite(total) or bool(np.isfinite(values).all())  # a sum of large numbers may overflow by itself


def check_output(out: NDArray[Any], precision: str, timestep: float, step: int | None = None) -> None:
    """Refuse a network's output with NaN or infinity in it.

    Raises:
        NotFiniteError: with the step, the timestep and the precision of the engine.
    """
    if not is_finite(out):
        raise not_finite("The network's output is not finite.", precision, timestep, step)


def not_finite(what: str, precision: str, timestep: float, step: int | None) -> NotFiniteError:
    place = "" if step is None else f"step {step}, "
    return NotFiniteError(
        what,
        found=f"NaN or infinity from {precision} at {place}timestep {timestep:g}",
        mend="see whether float32 samples well (--precision fp32 --correction off); if it does, give this step or layer more bits",
    )
