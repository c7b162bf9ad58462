"""How far samples are from those of full precision with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from engines.apps.evaluate.metrics.ssim import ssim
from engines.arrays import Float32, Float64

DATA_RANGE = 2.0
"""Images are in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class PairedSums:
    """Sums over pairs of samples. They can be merged.

    Attributes:
        image_errors: [n] mean squared error of each pair, with images clipped to [-1, 1].
        ssim_sum: sum of the pairs' structural similarities, with images clipped to [-1, 1].
        squared_error: sum of `(q - f)^2` over all state values, not clipped.
        squared_norm: sum of `f^2` over the same values.
    """

    image_errors: Float64
    ssim_sum: float
    squared_error: float
    squared_norm: float

    @classmethod
    def of(cls, states: Float32, full_precision: Float32) -> PairedSums:
        """Return the sums for states [n, C, H, W] and the full-precision states of the same seeds and numbers."""
        q, f = states.astype(np.float64), full_precision.astype(np.float64)
        return cls(
            image_errors=image_errors(q, f),
            ssim_sum=float(ssim(q.clip(-1, 1), f.clip(-1, 1), DATA_RANGE).sum()),
            squared_error=float(np.square(q - f).sum()),
            squared_norm=float(np.square(f).sum()),
        )

    def merge(self, other: PairedSums) -> PairedSums:
        """Return the sums over both sets of pairs."""
        return PairedSums(
            np.concatenate([self.image_errors, other.image_errors]),
            self.ssim_sum + other.ssim_sum,
            self.squared_error + other.squared_error,
            self.squared_norm + other.squared_norm,
        )

    @property
    def ssim(self) -> float:
        """Mean SSIM of the pairs."""
        return self.ssim_sum / len(self.image_errors)

    @property
    def relative_l2(self) -> float:
        """`|q - f| / |f|` over all values together."""
        return float(np.sqrt(self.squared_error / self.squared_norm))


def image_errors(states: Float32 | Float64, full_precision: Float32 | Float64) -> Float64:
    """Return [n], the mean squared errors of images [n, C, H, W], clipped to [-1, 1]."""
    one, other = (images.astype(np.float64, copy=False).clip(-1, 1) for images in (states, full_precision))
    return np.asarray(np.square(one - other).mean(axis=(1, 2, 3)))


def pooled_psnr(errors: Float64) -> float:
    """Return the PSNR in dB of the mean of image errors [n]; infinite if all images are identical."""
    return float(psnr(errors.mean()))


def median_psnr(errors: Float64) -> float:
    """Return the median in dB of the PSNR of images with the errors [n]; infinite if most images are identical."""
    return float(np.median(psnr(errors)))


def psnr(errors: Float64 | np.float64) -> Float64:
    """Return the peak signal-to-noise ratio in dB of mean squared errors; infinite without error."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(DATA_RANGE**2 / np.asarray(errors)))


def pooled_over_seeds(figures: Sequence[float]) -> float:
    """Return the pooled PSNR of several seeds with as many images each, from the pooled PSNR of each seed."""
    return float(psnr(np.float64(DATA_RANGE**2 * fmean(10 ** (-figure / 10) for figure in figures))))
