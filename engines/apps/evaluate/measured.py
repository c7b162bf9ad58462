"""What one batch of samples contributes to the scores, measured wherever it was sampled. The sums are added in sample order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.extractor import Extractor, Features
from engines.apps.evaluate.metrics.confidence import block_edges
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.paired import PairedSums
from engines.arrays import Float32, Float64, Int64


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements of a batch of n samples that falls into P of the blocks.

    Attributes:
        features: features of the samples.
        blocks: [P] block numbers.
        edges: [P + 1] positions, from 0 to n, where the batch is cut into blocks.
        values: [P, 3] count, mean and scatter of the state values.
        pairs: [P, 3] fields of `PairedSums` after the first; None if the samples were not paired.
        image_errors: [n] first field of `PairedSums`; None if the samples were not paired.
    """

    features: Features
    blocks: Int64
    edges: Int64
    values: Float64
    pairs: Float64 | None
    image_errors: Float64 | None

    def parts(self) -> Iterator[tuple[int, slice, FeatureStatistics, PairedSums | None]]:
        """Yield for each block its number, its slice of the batch, the statistics of its values, and the sums over its pairs."""
        for place, block in enumerate(self.blocks.tolist()):
            count, mean, scatter = self.values[place]
            values = FeatureStatistics(int(count), np.array([mean]), np.array([[scatter]]))
            part = slice(*self.edges[place : place + 2].tolist())
            if self.pairs is None or self.image_errors is None:
                yield block, part, values, None
            else:
                yield block, part, values, PairedSums(self.image_errors[part], *self.pairs[place].tolist())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, to be stored in a file."""
        known = {**vars(self), **vars(self.features)}
        return {name: value for name, value in known.items() if isinstance(value, np.ndarray)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Measured:
        features = Features(arrays["features"], arrays.get("spatial"), arrays.get("logits"))
        return cls(features, arrays["blocks"], arrays["edges"], arrays["values"], arrays.get("pairs"), arrays.get("image_errors"))


def measure(extractor: Extractor, states: Float32, full_precision: Float32 | None, *, seen: int, num: int) -> Measured:
    """Measure samples [n, C, H, W] as the sampler returns them.

    Args:
        extractor: feature extractor.
        states: the samples; clipped to [-1, 1] as images, but not for the statistics of state values.
        full_precision: the same samples from the full-precision network, or None.
        seen: number of samples before these.
        num: total number of samples, which determines the blocks.
    """
    cuts = (np.array([0, *block_edges(num), num]) - seen).clip(0, len(states))
    blocks = np.flatnonzero(np.diff(cuts))
    edges = np.append(cuts[blocks], cuts[blocks[-1] + 1])
    parts = [slice(*pair) for pair in itertools.pairwise(edges.tolist())]
    sums = [] if full_precision is None else [PairedSums.of(states[part], full_precision[part]) for part in parts]
    return Measured(
        features=extractor(states),
        blocks=blocks,
        edges=edges,
        values=np.array([_flat(FeatureStatistics.of(states[part].reshape(-1, 1))) for part in parts]),
        pairs=np.array([(one.ssim_sum, one.squared_error, one.squared_norm) for one in sums]) if sums else None,
        image_errors=np.concatenate([one.image_errors for one in sums]) if sums else None,
    )


def _flat(values: FeatureStatistics) -> tuple[float, float, float]:
    return values.count, values.mean.item(), values.scatter.item()
