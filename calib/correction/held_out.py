"""Whether what was fitted on some folds is borne out by a fold that took no part in the fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calib.correction.moments import Moments
from engines.arrays import Float64

# What a fit explains of held-out folds must exceed this many of its standard errors. Without correlation a bare "more than nothing"
# passes one channel in five, two standard errors one in fifty; a true slope too small for the margin is too small to matter.
MARGIN = 2.0


def borne_out(explained: Float64) -> NDArray[np.bool_]:
    """[C] whether sums of squares explained of the folds, [F, C] with F of at least 2, come to more than `MARGIN` standard errors."""
    F = len(explained)
    deviation = explained - explained.mean(axis=0)
    standard_error = np.sqrt(F / (F - 1) * (deviation**2).sum(axis=0))
    more: NDArray[np.bool_] = explained.sum(axis=0) > MARGIN * standard_error
    return more


def held_out_square(rest: Moments, held: Moments, weights: Float64) -> Float64:
    """[C] mean on `held` of the square of a combination of `x, e, d`, [C, 3], less the constant that is its mean on `rest`."""
    shift = np.stack([held.mean_of(variable) - rest.mean_of(variable) for variable in held.variables], axis=1)
    square: Float64 = (weights * shift).sum(axis=1) ** 2 + np.einsum("ci,cij,cj->c", weights, held.covariance_matrix(), weights)
    return square
