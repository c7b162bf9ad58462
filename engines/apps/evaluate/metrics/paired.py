"""How far samples are from those of full precision with the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.apps.evaluate.metrics.ssim import ssim
from engines.arrays import Float32, Float64

DATA_RANGE = 2.0
"""Images are in [-1, 1]."""

PSNR_LIMIT = 150.0
"""PSNR of identical images in dB. Their true PSNR is infinite, and would make the mean infinite too."""


@dataclass(frozen=True)
class PairedSums:
    """Sums over pairs of samples. They can be merged.

    Attributes:
        count: number of pairs.
        psnr_sum: sum of the pairs' peak signal-to-noise ratios in dB, with images clipped to [-1, 1].
        ssim_sum: sum of the pairs' structural similarities, with images clipped to [-1, 1].
        squared_error: sum of `(q - f)^2` over all state values, not clipped.
        squared_norm: sum of `f^2` over the same values.
    """

    count: int
    psnr_sum: float
    ssim_sum: float
    squared_error: float
    squared_norm: float

    @classmethod
    def of(cls, states: Float32, full_precision: Float32) -> PairedSums:
        """Return the sums for states [n, C, H, W] and the full-precision states of the same seeds and numbers."""
        q, f = states.astype(np.float64), full_precision.astype(np.float64)
        image, other = q.clip(-1, 1), f.clip(-1, 1)
        return cls(
            count=len(q),
            psnr_sum=float(psnr(image, other).sum()),
            ssim_sum=float(ssim(image, other, DATA_RANGE).sum()),
            squared_error=float(np.square(q - f).sum()),
            squared_norm=float(np.square(f).sum()),
        )

    def merge(self, other: PairedSums) -> PairedSums:
        """Return the sums over both sets of pairs."""
        return PairedSums(
            self.count + other.count,
            self.psnr_sum + other.psnr_sum,
            self.ssim_sum + other.ssim_sum,
            self.squared_error + other.squared_error,
            self.squared_norm + other.squared_norm,
        )

    @property
    def psnr(self) -> float:
        """Mean PSNR of the pairs in dB."""
        return self.psnr_sum / self.count

    @property
    def ssim(self) -> float:
        """Mean SSIM of the pairs."""
        return self.ssim_sum / self.count

    @property
    def relative_l2(self) -> float:
        """`|q - f| / |f|` over all values together."""
        return float(np.sqrt(self.squared_error / self.squared_norm))


def psnr(one: Float64, other: Float64) -> Float64:
    """Return [n], the peak signal-to-noise ratios in dB of images [n, C, H, W] in [-1, 1], at most `PSNR_LIMIT`."""
    error = np.square(one - other).mean(axis=(1, 2, 3))
    floor = DATA_RANGE**2 / 10 ** (PSNR_LIMIT / 10)
    return np.asarray(10 * np.log10(DATA_RANGE**2 / error.clip(floor)))
