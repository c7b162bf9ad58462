"""Clean samples that chains start from, and the part of them that inpainting keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.late_start import Level


@dataclass(frozen=True, eq=False)
class Origin:
    """What the chains of a run start from.

    Attributes:
        levels: level of the state before each step, and at the end, [S + 1].
        clean: returns the clean states [batch or 1, channels, ...] of the samples with numbers [batch].
        mask: float32 [1, ...], 1 where the samples are repainted and 0 where they are kept; None keeps nothing.
        from_noise: start from noise alone, as diffusers' inpainting does at strength 1.
    """

    levels: tuple[Level, ...]
    clean: Callable[[Int64], Float32]
    mask: Float32 | None = None
    from_noise: bool = False

    def of(self, samples: Int64, eps: Float32) -> KnownStates:
        """Return the states of a batch of samples whose starting noise is `eps` [batch, channels, ...]."""
        return KnownStates(self, samples, eps)


@dataclass(frozen=True, eq=False)
class KnownStates:
    """The clean states of a batch with the samples' own starting noise, at any level of the chain."""

    origin: Origin
    samples: Int64
    eps: Float32

    @cached_property
    def _clean(self) -> Float32:
        return self.origin.clean(self.samples)

    def first(self, init_sigma: float) -> Float32:
        """Return the first states of the chains [batch, channels, ...]."""
        return np.asarray(np.float32(init_sigma) * self.eps) if self.origin.from_noise else self._at(0)

    def kept(self, step: int, x: Float32) -> Float32:
        """Return the states `x` after a step, with what the mask keeps replaced by the clean states at the level of the next step."""
        mask = self.origin.mask
        return x if mask is None else np.asarray((1 - mask) * self._at(step + 1) + mask * x)

    def _at(self, step: int) -> Float32:
        alpha, sigma = map(np.float32, self.origin.levels[step])
        return np.asarray(alpha * self._clean + sigma * self.eps)
