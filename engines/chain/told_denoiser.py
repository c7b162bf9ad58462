"""A network that tells when it has run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.features import CutDenoiser


@dataclass(frozen=True)
class ToldDenoiser:
    """A `Denoiser` that calls `on_evaluation` after every batch."""

    denoiser: Denoiser
    on_evaluation: Callable[[], None]

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        out = self.denoiser(x, timestep, rows)
        self.on_evaluation()
        return out


@dataclass(frozen=True)
class ToldCut:
    """A `CutDenoiser` that calls `on_evaluation` after every batch."""

    denoiser: CutDenoiser
    on_evaluation: Callable[[], None]

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        return self.keep(x, timestep, rows)[0]

    def keep(self, x: Float32, timestep: float, rows: Int64) -> tuple[Float32, Float32]:
        found = self.denoiser.keep(x, timestep, rows)
        self.on_evaluation()
        return found

    def reuse(self, x: Float32, timestep: float, rows: Int64, kept: Float32) -> Float32:
        out = self.denoiser.reuse(x, timestep, rows, kept)
        self.on_evaluation()
        return out


def told(denoiser: Denoiser, on_evaluation: Callable[[], None]) -> Denoiser:
    """Return a network that calls `on_evaluation` after every batch."""
    return ToldCut(denoiser, on_evaluation) if isinstance(denoiser, CutDenoiser) else ToldDenoiser(denoiser, on_evaluation)
