"""Compares the quantization noise of two networks at the same states: `d = k e + r`, with `e` of full precision.

The two are paired: where one rounds up, the other mostly does too. What is compared is therefore the difference within each unit, a unit
being a sample, or a band of a sample's positions where there are few samples; its standard error comes from the spread over the units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from engines.arrays import Float64
from engines.errors import PtqdError

UNITS = 32
"""Units wanted: samples are divided into bands if there are fewer samples."""

LEAST_UNITS = 16
"""With fewer units, a spread says too little."""


@dataclass(frozen=True)
class PairedNoise:
    """Noise of a network beside that of its oracle.

    Attributes:
        k, oracle_k: share of `e` in the noise.
        k_error: standard error of `k - oracle_k`.
        variance, oracle_variance: mean square of the residual.
        ratio_error: standard error of log(variance / oracle_variance).
        units: independent values behind the errors.
    """

    k: float
    oracle_k: float
    k_error: float
    variance: float
    oracle_variance: float
    ratio_error: float
    units: int

    @property
    def log_ratio(self) -> float:
        """log(variance / oracle_variance)."""
        return float(np.log(self.variance / self.oracle_variance))

    def bounds(self, chance: float) -> tuple[float, float]:
        """Largest differences of `k` and of the log variance that sampling explains, exceeded with probability `chance`."""
        quantile = float(stats.t.ppf(1 - chance / 4, self.units - 1))  # two bounds, two sides
        return quantile * self.k_error, quantile * self.ratio_error


def paired_noise(reference: NDArray[Any], oracle: NDArray[Any], network: NDArray[Any]) -> PairedNoise:
    """Compare two networks at N states.

    Args:
        reference: [N, channels, ...] outputs `e` of full precision.
        oracle: same shape, outputs of the oracle.
        network: same shape, outputs of the network under test.

    Raises:
        PtqdError: the states hold too few values to compare.
    """
    e, q_oracle, q = (_units(value) for value in (reference, oracle, network))
    count, power = len(e), np.mean(e**2)
    k_oracle, k = (float(np.mean((value - e) * e) / power) for value in (q_oracle, q))
    residual_oracle, residual = ((value - (1 + gain) * e) for value, gain in ((q_oracle, k_oracle), (q, k)))
    variance_oracle, variance = (np.mean(r**2) for r in (residual_oracle, residual))
    gains = np.mean((q - q_oracle - (k - k_oracle) * e) * e, axis=1) / power
    ratios = np.mean(residual**2 - variance / variance_oracle * residual_oracle**2, axis=1) / variance
    k_error, ratio_error = (float(values.std(ddof=1) / np.sqrt(count)) for values in (gains, ratios))
    return PairedNoise(k, k_oracle, k_error, float(variance), float(variance_oracle), ratio_error, count)


def _units(value: NDArray[Any]) -> Float64:
    """[units, values] float64; every unit has the same number of values, of all channels."""
    samples, channels = value.shape[:2]
    flat = value.reshape(samples, channels, -1).astype(np.float64)
    bands = min(-(-UNITS // samples), flat.shape[2])
    if samples * bands < LEAST_UNITS:
        raise PtqdError(
            "There are too few values to verify a quantized graph.",
            found=f"{samples} states of {flat.shape[2]} positions",
            expected=f"at least {LEAST_UNITS} states or positions",
            mend="raise calibration.activation_samples",
        )
    size = flat.shape[2] // bands
    banded = flat[..., : size * bands].reshape(samples, channels, bands, size)
    return np.asarray(np.moveaxis(banded, 2, 1).reshape(samples * bands, channels * size))
