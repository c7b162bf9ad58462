"""Guidance that keeps the norm of the conditional output: the network returns its two branches as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from engines.arrays import Float32
from engines.chain.denoiser import guide, is_guided


@dataclass(frozen=True)
class NormGuidance:
    """Classifier-free guidance, scaled back to the norm of the conditional output in every patch, as `QwenImagePipeline` does.

    It is not linear in the branches, so a denoiser applies it, and corrections are those of the guided output.

    Attributes:
        guidance: guidance scale w.
        patch: side of a patch in latents, which divides the sides of a state.
    """

    guidance: float
    patch: int

    @classmethod
    def at(cls, guidance: float, patch: int | None) -> Self | None:
        """Return the guidance of a network whose patches keep their norm; None without such patches, or without guidance."""
        return None if patch is None or not is_guided(guidance) else cls(guidance, patch)

    def __call__(self, branches: Float32) -> Float32:
        """Return the guided output [1, batch, channels, ...] of both branches [2, batch, channels, ...]. An output of zeros stays so."""
        guided = guide(branches, self.guidance)
        wanted, norm = self._norms(branches[0]), self._norms(guided)
        scale = np.divide(wanted, norm, out=np.ones_like(norm), where=norm > 0)
        return np.asarray((self._patches(guided) * scale).reshape(1, *guided.shape))

    def _patches(self, states: Float32) -> Float32:
        """Return states [batch, channels, *sides] with two axes for each side: patches, and latents in a patch."""
        batch, channels, *sides = states.shape
        return states.reshape(batch, channels, *(size for side in sides for size in (side // self.patch, self.patch)))

    def _norms(self, states: Float32) -> Float32:
        """Return the norm of each patch over channels and latents."""
        patches = self._patches(states)
        within = (1, *range(3, patches.ndim, 2))
        return np.asarray(np.sqrt(np.square(patches).sum(axis=within, keepdims=True)))
