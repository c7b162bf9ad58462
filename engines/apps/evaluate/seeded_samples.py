"""The noise and conditioning of one seed's samples, and the images that a chain makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.networks.image_decoder import Decoder
from engines.terminal.progress import progress


@dataclass(frozen=True)
class SeededSamples:
    """The samples of one seed, the same for every chain.

    Attributes:
        noise: noise of the seed.
        samples: [num] sample numbers.
        rows: [num] conditioning rows.
        batch_size: number of samples that the networks process at once.
    """

    noise: NoiseSource
    samples: Int64
    rows: Int64
    batch_size: int

    def batches(self) -> Iterator[tuple[Int64, Int64]]:
        """Yield the sample numbers and rows of each batch."""
        return zip(batches(self.samples, self.batch_size), batches(self.rows, self.batch_size), strict=True)

    def images(self, chain: Chain, decoder: Decoder, label: str) -> Iterator[tuple[Float32, Int64]]:
        """Yield the chain's samples as images, and their rows, batch by batch, in order of sample number."""
        steps = len(chain.schedule.steps) * math.ceil(len(self.samples) / self.batch_size)
        with progress(f"{label}, seed {self.noise.seed}", steps) as advance:
            for samples, rows in self.batches():
                yield decoder(chain.sample(self.noise, samples, rows, advance)), np.asarray(rows)
