"""Evaluation on a cluster: workers sample and measure both chains, and the sums are added in sample order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.in_pairs import FULL_PRECISION, QUANTIZED
from engines.apps.evaluate.measured import Measured, measure
from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice
from engines.networks.decoder import open_decoder

PairUnit: TypeAlias = tuple[int, Int64, Int64]
"""Seed, sample numbers [B] counted from 0, and their conditioning rows [B]."""


@dataclass(frozen=True)
class PairWork:
    """Samples and measures both chains of a unit from the same noise; see `engines.cluster.pool.Work`.

    Attributes:
        bundle: bundle with the engines.
        features: folder with the extractor and no other file.
        choice: how to sample.
        full_precision: precision that the chain is compared with.
        batch: number of samples in a full batch.
        num: total number of samples per seed.
    """

    bundle: FolderCopy
    features: FolderCopy
    choice: ChainChoice
    full_precision: str
    batch: int
    num: int

    def open(self, threads: int) -> Callable[[PairUnit], dict[str, NDArray[Any]]]:
        bundle = Bundle.open(self.bundle.local(), self.choice.size)
        (name,) = self.features.digests
        extractor = Extractor(self.features.local() / name, threads)
        chain = replace(self.choice, threads=threads).open(bundle, self.batch)
        reference = replace(chain, precision=self.full_precision, corrected=False)
        decoder = open_decoder(bundle, self.choice.runtime, threads)

        def run(unit: PairUnit) -> dict[str, NDArray[Any]]:
            seed, samples, rows = unit

            def images(of: Chain) -> Float32:
                return decoder(of.sample(NoiseSource(seed, bundle.manifest.model.sample_shape), samples, rows))

            def measured(states: Float32, paired: Float32 | None) -> Measured:
                return measure(extractor, states, paired, seen=int(samples[0]), num=self.num)

            exact = images(reference)
            parts = {FULL_PRECISION: measured(exact, None), QUANTIZED: measured(images(chain), exact)}
            return {prefix + name: array for prefix, part in parts.items() for name, array in part.arrays().items()}

        return run


def unit_of(seed: int, samples: Int64, rows: Int64) -> tuple[str, PairUnit]:
    """Return the name of a unit and the unit."""
    return f"{seed}-{samples[0]:08d}-{samples[-1]:08d}", (seed, np.asarray(samples), np.asarray(rows))
