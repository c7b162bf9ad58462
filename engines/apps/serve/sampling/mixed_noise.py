"""Noise of a batch in which every sample has its own seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.noise import NoiseSource


@dataclass(frozen=True)
class MixedNoise:
    """An `engines.chain.noise.Noise` for one batch: element b is sample number `samples[b]` of seed `seeds[b]`.

    Attributes:
        seeds: [B] seed of each sample.
        shape: shape of one sample, without the batch.
    """

    seeds: tuple[int, ...]
    shape: tuple[int, ...]

    def start(self, samples: Int64) -> Float32:
        return np.concatenate([source.start(samples[b : b + 1]) for b, source in self._sources()])

    def step(self, step: int, samples: Int64) -> Float32:
        return np.concatenate([source.step(step, samples[b : b + 1]) for b, source in self._sources()])

    def _sources(self) -> list[tuple[int, NoiseSource]]:
        return [(b, NoiseSource(seed, self.shape)) for b, seed in enumerate(self.seeds)]
