"""Finds the cheapest chain whose end error is predicted to be small enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calib.walk.budget import Menu, cheapest, choose
from calib.walk.sensitivity import Probes
from engines.errors import UsageError

HALVINGS = 8
"""How often the range of bounds that the search goes through is halved."""

PEAK_SQUARE = 4.0
"""Square of the range of an image's values, which is from -1 to 1."""


def predicted_error(menu: Menu, probes: Probes, choice: Sequence[str]) -> float:
    """Predict the mean square end error of a chain, pooled over samples as `calib.walk.sensitivity` does.

    Probes know how the errors of whole steps add up. Those of steps that reuse features are taken to point the same way as all others, so
    the prediction for them is an upper bound.
    """
    return float((math.sqrt(probes.predict(choice)) + menu.reused_bound_of(choice)) ** 2)


def decibels(error: float) -> float:
    """Return the PSNR in dB of images in [-1, 1] with a mean square error; infinite without error."""
    return 10 * math.log10(PEAK_SQUARE / error) if error > 0 else math.inf


def cheapest_reaching(menu: Menu, probes: Probes, psnr: float) -> tuple[str, ...]:
    """Return the cheapest chain that was found whose predicted error is that of images with a PSNR of at least `psnr` dB.

    A chain whose bound is the error asked for is surely good enough. Predictions are lower than bounds, so the search goes on with
    larger ones, for the largest whose cheapest chain is still predicted to be good enough.

    Raises:
        UsageError: no chain is predicted to reach it.
    """

    def reaches(choice: Sequence[str]) -> bool:
        return decibels(predicted_error(menu, probes, choice)) >= psnr

    best = choose(menu, float(menu.costs.max()))
    if not reaches(best):
        raise UsageError(
            "No chain is predicted to reach this PSNR.",
            found=f"{psnr:g} dB",
            expected=f"at most {decibels(predicted_error(menu, probes, best)):.1f} dB, that of the best chain of {', '.join(menu.whole)}",
            mend="ask for less, or add a precision with more bits",
        )
    low, high = max(menu.bound_of(best), math.sqrt(PEAK_SQUARE * 10 ** (-psnr / 10))), float(menu.amplitudes.max(axis=1).sum())
    for bound in (high, low):
        if reaches(chain := cheapest(menu, bound)):
            best, low = chain, bound
            break
    for _ in range(HALVINGS if low < high else 0):
        middle = math.sqrt(low * high)
        if reaches(chain := cheapest(menu, middle)):
            best, low = chain, middle
        else:
            high = middle
    return best
