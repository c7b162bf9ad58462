"""Raises an error that names the step when a network or a step returns NaN or infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import PtqdError


class NotFiniteError(PtqdError):
    """A network or a step returned NaN or infinity."""


def is_finite(values: NDArray[Any]) -> bool:
    """Whether all values are finite. Checking only their sum would be no faster; see docs/reliability.md."""
    return bool(np.isfinite(values).all())


def check_output(out: NDArray[Any], precision: str, timestep: float, step: int | None = None) -> None:
    """Refuse a network output that contains NaN or infinity.

    Raises:
        NotFiniteError: the output is not finite; the message names the step, the timestep and the precision.
    """
    if not is_finite(out):
        raise not_finite("The network's output is not finite.", precision, timestep, step)


def not_finite(what: str, precision: str, timestep: float, step: int | None) -> NotFiniteError:
    place = "" if step is None else f"step {step}, "
    return NotFiniteError(
        what,
        found=f"NaN or infinity from {precision} at {place}timestep {timestep:g}",
        mend="check that float32 samples well (--precision fp32 --correction off); if it does, give this step or layer more bits",
    )
