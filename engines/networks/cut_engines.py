"""A network that is cut, on two engines: one that returns its deep features, and one that takes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from engines.arrays import Float32, Int64
from engines.backends.base import KEPT
from engines.networks.conditioning import Conditioning
from engines.networks.engine_denoiser import EngineDenoiser


@dataclass(frozen=True)
class CutEngines(EngineDenoiser):
    """An `engines.chain.features.CutDenoiser`. Its own engine computes everything, with the second output `kept`.

    Attributes:
        reusing: the same network with the further input `kept`.
    """

    reusing: EngineDenoiser = field(kw_only=True)

    def keep(self, x: Float32, timestep: float, rows: Int64) -> tuple[Float32, Float32]:
        out, kept = self.engine.run_keeping(self.feeds(x, timestep, rows))
        return self.of_branches(out, x), np.moveaxis(kept.reshape(self.branches, len(x), *kept.shape[1:]), 0, 1)

    def reuse(self, x: Float32, timestep: float, rows: Int64, kept: Float32) -> Float32:
        of_rows = np.moveaxis(kept, 1, 0).reshape(-1, *kept.shape[2:])
        return self.of_branches(self.reusing.engine.run({**self.reusing.feeds(x, timestep, rows), KEPT: of_rows}), x)

    def conditioned(self, conditioning: Conditioning) -> CutEngines:
        return replace(self, conditioning=conditioning, reusing=self.reusing.conditioned(conditioning))
