"""NaN and infinity stop what they would spoil, with the step named that they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import PtqdError


class NotFiniteError(PtqdError):
    """A network, or a step, gave NaN or infinity."""


def is_finite(values: NDArray[Any]) -> bool:
    """Whether all values are. A sum, which either would spoil too, takes as long; see docs/reliability.md."""
    return bool(np.isfinite(values).all())


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
