"""How well one network's outputs agree with another's, accumulated over any number of batches in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engines.arrays import Float32


@dataclass
class Agreement:
    """Sums over all values of a reference's outputs `e` and an engine's outputs `q`. The figures cover everything that was added.

    They are defined as in Polygraphy's `SnrCompareFunc`, `CosineSimilarityCompareFunc` and `PsnrCompareFunc`. Those see one batch at a
    time, so the mean of their decibels would depend on the batch size.
    """

    count: int = 0
    signal: float = 0.0
    engine: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    peak: float = -math.inf
    max_absolute_error: float = 0.0

    def add(self, reference: Float32, engine: Float32) -> None:
        """Add a batch of outputs. Both arrays have the same shape."""
        e, q = reference.astype(np.float64).ravel(), engine.astype(np.float64).ravel()
        d = q - e
        self.count += e.size
        self.signal += float(e @ e)
        self.engine += float(q @ q)
        self.product += float(e @ q)
        self.noise += float(d @ d)
        self.peak = max(self.peak, float(e.max()))
        self.max_absolute_error = max(self.max_absolute_error, float(np.abs(d).max()))

    @property
    def snr_db(self) -> float:
        """`10 log10(E[e^2] / E[(q - e)^2])`, infinite if the outputs are equal."""
        return decibels(self.signal, self.noise)

    @property
    def psnr_db(self) -> float:
        """`10 log10(max(e)^2 / E[(q - e)^2])`; a maximum that is not positive counts as 1."""
        return decibels((self.peak if self.peak > 0 else 1.0) ** 2, self.noise / self.count)

    @property
    def cosine_similarity(self) -> float:
        """`e.q / (|e| |q|)`: 1 if both are zero, 0 if only one is."""
        norms = math.sqrt(self.signal * self.engine)
        if norms == 0:
            return float(self.signal == self.engine)
        return max(-1.0, min(1.0, self.product / norms))


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two powers in dB: infinity if there is no noise, minus infinity if there is only noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
