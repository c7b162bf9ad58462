"""Calibrates the variance schedule: the step's fresh noise gives up exactly the variance that quantization added.

"Variance" means the variance within each channel, over samples and pixels, averaged over channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CalibratedSigma:
    """The fresh noise of a step.

    Attributes:
        sigma_corrected: standard deviation to use in place of the sampler's.
        excess: variance that quantization adds to the step; negative if quantization reduces the variance.
        unabsorbed_variance: part of a positive excess that the noise could not give up, so the next state keeps it.
    """

    sigma_corrected: float
    excess: float
    unabsorbed_variance: float


def calibrate_sigma(sigma: float, excess: float) -> CalibratedSigma:
    """`sigma'^2 = max(sigma^2 - excess, 0)`, at most `sigma^2`; `measured_excess` or `short_form_excess` gives the excess.

    Noise is only removed, never added. If coarse quantization leaves a step with too little variance, the missing part has the structure
    of the image. White noise in its place would restore the variance of a pixel but show as grain.
    """
    corrected = min(math.sqrt(max(sigma**2 - excess, 0.0)), sigma)
    return CalibratedSigma(corrected, excess, max(excess - sigma**2, 0.0))


def keep_sigma(sigma: float, excess: float) -> CalibratedSigma:
    """Keep the sampler's own noise, for a schedule that is not calibrated. Nothing is absorbed."""
    return CalibratedSigma(sigma, excess, max(excess, 0.0))


def short_form_excess(B: float, residual_variance: float) -> float:
    """The paper's `B^2 v`, valid if the residual is uncorrelated with `x` and `e`. `B` belongs to the original sigma."""
    return B**2 * residual_variance
