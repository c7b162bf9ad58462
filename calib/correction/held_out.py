"""Tests whether a fit on some folds also holds on a fold that was left out of the fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calib.correction.moments import Moments
from engines.arrays import Float64

# The sum of squares that a fit explains on held-out folds must exceed this many of its standard errors. Without any correlation, one
# channel in five passes a margin of 0 and one in fifty a margin of 2. A true slope too small for the margin is too small to matter.
MARGIN = 2.0


def borne_out(explained: Float64) -> NDArray[np.bool_]:
    """[C] whether the sums of squares explained on the folds, [F, C] with F >= 2, add up to more than `MARGIN` standard errors."""
    F = len(explained)
    deviation = explained - explained.mean(axis=0)
    standard_error = np.sqrt(F / (F - 1) * (deviation**2).sum(axis=0))
    more: NDArray[np.bool_] = explained.sum(axis=0) > MARGIN * standard_error
    return more


def held_out_square(rest: Moments, held: Moments, weights: Float64) -> Float64:
    """[C] mean square on `held` of the combination of `x, e, d` with these weights, [C, 3], after subtracting its mean on `rest`."""
    shift = np.stack([held.mean_of(variable) - rest.mean_of(variable) for variable in held.variables], axis=1)
    square: Float64 = (weights * shift).sum(axis=1) ** 2 + np.einsum("ci,cij,cj->c", weights, held.covariance_matrix(), weights)
    return square
