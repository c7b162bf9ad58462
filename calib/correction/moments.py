"""Streamed first and second moments of a few variables, per fold and channel. The fits see nothing else of the data.

Moments add (Chan, Golub and LeVeque 1979), so they merge across batches, processes and machines, and a fit can be repeated from a
file without running a network. Folds are groups of whole samples. Only the spread between folds measures the error honestly, because
the pixels of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import effective_guidance
from engines.errors import BundleError

FOLDS = 4
ROUNDING = 1e-9
"""Relative error of sums that is no damage."""

PLAIN = ("x", "e", "d")
GUIDED = ("x", "e_cond", "e_uncond", "d_cond", "d_uncond")


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of V variables over F folds and C channels. A finished instance is never modified. All floats are float64.

    Attributes:
        variables: the V names; for the statistics of a network `PLAIN` or `GUIDED`, with `d = q - e`.
        count: [F] number of values seen per channel.
        samples: [F] number of images seen.
        mean: [F, C, V].
        scatter: [F, C, V, V] sums of products of deviations from the fold's own mean.
    """

    variables: tuple[str, ...]
    count: Int64
    samples: Int64
    mean: Float64
    scatter: Float64

    @classmethod
    def empty(cls, variables: tuple[str, ...], channels: int, fold_count: int = FOLDS) -> Moments:
        V = len(variables)
        zeros = np.zeros(fold_count, np.int64)
        return cls(variables, zeros, zeros, np.zeros((fold_count, channels, V)), np.zeros((fold_count, channels, V, V)))

    @classmethod
    def of(cls, variables: tuple[str, ...], values: NDArray[np.floating[Any]], folds: Int64, fold_count: int = FOLDS) -> Moments:
        """Moments of one batch, in float64.

        Args:
            values: [V, batch, channels, ...]. Differences must already have been taken in float64, see `observe`.
            folds: [batch] fold of each sample.
        """
        V, _, C = values.shape[:3]
        if (V, len(folds)) != (len(variables), values.shape[1]):
            raise ValueError(f"values {values.shape} do not match {len(variables)} variables and {len(folds)} samples")
        samples = np.bincount(folds, minlength=fold_count)
        moments = cls.empty(variables, C, fold_count)
        for fold in np.flatnonzero(samples):
            block = np.moveaxis(values[:, folds == fold], 2, 0).reshape(C, V, -1).astype(np.float64)
            moments.mean[fold] = block.mean(axis=-1)
            block -= moments.mean[fold, :, :, None]
            moments.scatter[fold] = block @ block.swapaxes(1, 2)
        return cls(variables, samples * int(np.prod(values.shape[3:])), samples, moments.mean, moments.scatter)

    @property
    def fold_count(self) -> int:
        return len(self.count)

    @property
    def channels(self) -> int:
        return int(self.mean.shape[1])

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of samples together, exact up to rounding."""
        if (self.variables, self.mean.shape) != (other.variables, other.mean.shape):
            raise ValueError(f"moments of {self.variables} {self.mean.shape} and {other.variables} {other.mean.shape} cannot be merged")
        count = self.count + other.count
        share = (other.count / np.maximum(count, 1))[:, None, None]
        delta = other.mean - self.mean
        between = (self.count[:, None, None] * share * delta)[..., :, None] * delta[..., None, :]
        return Moments(
            self.variables, count, self.samples + other.samples, self.mean + share * delta, self.scatter + other.scatter + between
        )

    def about_pooled_mean(self) -> Float64:
        """[F, C, V, V] sums, per fold, of products of deviations from the mean over all folds; they add up to the pooled scatter."""
        delta = self.mean - self._pooled_mean()
        return self.scatter + self.count[:, None, None, None] * delta[..., :, None] * delta[..., None, :]

    def pooled(self) -> Moments:
        """Merge all folds into one."""
        scatter = self.about_pooled_mean().sum(axis=0, keepdims=True)
        return Moments(self.variables, self.count.sum(keepdims=True), self.samples.sum(keepdims=True), self._pooled_mean()[None], scatter)

    def only(self, fold: int) -> Moments:
        return self._select(np.array([fold]))

    def leave_out(self, fold: int) -> Moments:
        """Moments of the other F - 1 folds."""
        return self._select(np.delete(np.arange(self.fold_count), fold))

    def project(self, matrix: Float64, variables: tuple[str, ...]) -> Moments:
        """Moments of `matrix @ variables`: any linear map [V', V] of the variables, or one per channel [C, V', V], in closed form."""
        M = matrix
        mean = (M @ self.mean[..., None])[..., 0]
        return Moments(variables, self.count, self.samples, mean, M @ self.scatter @ M.swapaxes(-1, -2))

    def guided(self, guidance: float) -> Moments:
        """Moments of `x, e, d` for the guided output `u + w (c - u)`, or for `c` at w up to 1.

        Moments of an unguided network are returned unchanged.
        """
        if self.variables == PLAIN:
            return self
        w = effective_guidance(guidance)
        u = 1 - w
        return self.project(np.array([[1, 0, 0, 0, 0], [0, w, u, 0, 0], [0, 0, 0, w, u]], np.float64), PLAIN)

    def mean_of(self, variable: str) -> Float64:
        """[C] mean over all folds."""
        mean: Float64 = self._pooled_mean()[:, self.variables.index(variable)]
        return mean

    def covariance_matrix(self) -> Float64:
        """[C, V, V] covariances within each channel over all folds (divided by the count, not by the count minus one)."""
        covariances: Float64 = self.about_pooled_mean().sum(axis=0) / self.count.sum()
        return covariances

    def covariance(self, one: str, other: str) -> Float64:
        """[C] covariance of two variables within each channel over all folds."""
        return self.covariance_matrix()[:, self.variables.index(one), self.variables.index(other)]

    def variance(self, variable: str) -> Float64:
        """[C] variance within each channel over all folds."""
        return self.covariance(variable, variable)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, from which `from_json` restores the same floats to the last bit."""
        arrays = {"count": self.count, "samples": self.samples, "mean": self.mean, "scatter": self.scatter}
        return {"variables": list(self.variables)} | {key: array.tolist() for key, array in arrays.items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Moments:
        """Raises BundleError if a field is missing, has the wrong shape or type, or contains NaN or infinity."""
        try:
            moments = cls(
                tuple(stored["variables"]),
                _integers(stored["count"]),
                _integers(stored["samples"]),
                np.asarray(stored["mean"], np.float64),
                np.asarray(stored["scatter"], np.float64),
            )
            moments._check()
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError("The stored moments are damaged.", found=error, mend="Build the statistics again.") from error
        return moments

    def _check(self) -> None:
        F, V = len(self.count), len(self.variables)
        C = self.mean.shape[1] if self.mean.ndim == 3 else 0
        if not all(isinstance(name, str) for name in self.variables):
            raise ValueError("variables are not names")
        shapes = {"count": (F,), "samples": (F,), "mean": (F, C, V), "scatter": (F, C, V, V)}
        for key, shape in shapes.items():
            array = getattr(self, key)
            if array.shape != shape or 0 in shape:
                raise ValueError(f"{key} has shape {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} contains NaN or infinity")
        if not ((self.count >= self.samples) & (self.samples >= 0)).all():
            raise ValueError("count and samples do not agree")
        if not _are_scatters(self.scatter):
            raise ValueError("scatter has entries that no sums of products have")

    def _pooled_mean(self) -> Float64:
        mean: Float64 = np.einsum("f,fcv->cv", self.count / np.maximum(self.count.sum(), 1), self.mean)
        return mean

    def _select(self, folds: Int64) -> Moments:
        return Moments(self.variables, self.count[folds], self.samples[folds], self.mean[folds], self.scatter[folds])


def observe(x: Float32, reference: Float32, quantized: Float32, folds: Int64) -> Moments:
    """Moments of one batch of outputs of the full-precision network and a quantized network at the same states.

    Args:
        x: [batch, channels, ...] states.
        reference: [branches, batch, channels, ...] `e` before guidance, as a `Denoiser` returns it.
        quantized: `q`, same shape.
        folds: [batch] fold of each sample.
    """
    if reference.shape != quantized.shape or reference.shape[1:] != x.shape:
        raise ValueError(f"outputs {reference.shape} and {quantized.shape} do not match states {x.shape}")
    branches = len(reference)
    values = np.concatenate([x[None], reference, quantized], dtype=np.float64)
    # Convert to float64 before subtracting: q and e agree in most of their digits, and the moments describe what is left.
    values[1 + branches :] -= values[1 : 1 + branches]
    return Moments.of(PLAIN if branches == 1 else GUIDED, values, folds)


def _integers(values: ArrayLike) -> Int64:
    array = np.asarray(values)
    if array.dtype != np.int64:
        raise TypeError(f"{array.dtype} where integers were expected")
    return array


def _are_scatters(matrices: Float64) -> bool:
    """Whether matrices [..., V, V] are symmetric without negative eigenvalues, apart from rounding."""
    size = np.abs(matrices).max(axis=(-2, -1), keepdims=True)
    scaled = matrices / np.where(size > 0, size, 1.0)
    return bool(np.allclose(scaled, scaled.swapaxes(-1, -2), rtol=0, atol=ROUNDING) and (np.linalg.eigvalsh(scaled) > -ROUNDING).all())
