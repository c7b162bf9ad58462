"""An engine as a `Denoiser`: feeds the conditioning, doubles the batch under guidance, splits the branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.conditioning import Conditioning
from engines.errors import PtqdError

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
        out = self.engine.run(self.feeds(x, timestep, rows))
        if out.shape[1:] != x.shape[1:]:
            raise PtqdError(f"The output of {self.engine.label} does not fit.", found=list(out.shape[1:]), expected=list(x.shape[1:]))
        return out.reshape(self.branches, *x.shape)

    @property
    def branches(self) -> int:
        """Rows that the engine is given of one sample."""
        return 2 if self.guided else 1

    def feeds(self, x: Float32, timestep: float, rows: Int64) -> dict[str, NDArray[Any]]:
        """What the engine is given, [branches * batch, ...] of every input."""
        feeds = {} if self.conditioning is None else self.conditioning.feeds(rows, guided=self.guided)
        feeds[STATE] = np.concatenate([x] * self.branches) if self.guided else x
        feeds[TIMESTEP] = np.full(self.branches * len(x), timestep, dtype=np.float32)
        return feeds
