"""An engine as a `Denoiser`: feeds the conditioning, doubles the batch under guidance, splits the branches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.conditioning import Conditioning

STATE = "sample"
TIMESTEP = "timestep"


@dataclass(frozen=True)
class EngineDenoiser:
    """See `engines.denoiser.Denoiser`.

    Attributes:
        engine: its inputs are `sample` [batch, channels, ...], `timestep` [batch] and those of the conditioning.
        conditioning: None for unconditional models.
        guided: evaluate the unconditional branch too, in one doubled batch.
    """

    engine: Engine
    conditioning: Conditioning | None
    guided: bool

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        branches = 2 if self.guided else 1
        feeds = {} if self.conditioning is None else self.conditioning.feeds(rows, guided=self.guided)
        feeds[STATE] = np.concatenate([x] * branches) if self.guided else x
        feeds[TIMESTEP] = np.full(branches * len(x), timestep, dtype=np.float32)
        return self.engine.run(feeds).reshape(branches, *x.shape)
