"""All scores of one chain's samples, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.extractor import SMALL_NAME, Extractor, Features
from engines.apps.evaluate.measured import Measured, measure
from engines.apps.evaluate.metrics.by_block import ByBlock
from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate, block_edges
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import Gaussian, frechet_distance
from engines.apps.evaluate.metrics.inception_score import ClassSums
from engines.apps.evaluate.metrics.manifold import POINTS_LIMIT, precision, recall
from engines.apps.evaluate.metrics.paired import PairedSums, median_psnr, pooled_over_seeds, pooled_psnr
from engines.apps.evaluate.metrics.subset import Subset
from engines.apps.evaluate.reference import Reference
from engines.apps.evaluate.scorers.sample_scorer import SampleScorer
from engines.arrays import Float32, Int64

FRECHET_DISTANCE = "frechet_distance"
SPATIAL_FRECHET_DISTANCE = "spatial_frechet_distance"
INCEPTION_SCORE = "inception_score"
PRECISION, RECALL = "precision", "recall"
POOLED_PSNR, MEDIAN_PSNR = "pooled_psnr", "median_psnr"

OF_FEATURES = (FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE, INCEPTION_SCORE, PRECISION, RECALL)
"""Figures that depend on the feature extractor."""

OVER_SEEDS = {POOLED_PSNR: pooled_over_seeds}
"""How a figure of several seeds is averaged, where it is not by their mean."""

LEAST_SAMPLES = 5 * BLOCKS
"""Fewer samples are not enough to estimate an error."""


class SampleScores:
    """Sums over the samples of one chain and one seed. Memory does not grow with their number, except for up to `POINTS_LIMIT` features
    and one number per pair.

    Args:
        num: number of samples that will be added, at least `LEAST_SAMPLES`.
        reference: what the samples are scored against.
        extractor: extractor that the reference was made with.
        scorers: networks that give further figures.
    """

    def __init__(self, num: int, reference: Reference, extractor: Extractor, scorers: Sequence[SampleScorer] = ()) -> None:
        if num < LEAST_SAMPLES:
            raise ValueError(f"{num} samples; a score needs {LEAST_SAMPLES}")
        self._num = num
        self._reference = reference
        self._extractor = extractor
        self._scorers = scorers
        self._scored = {scorer.figure: ByBlock(FeatureStatistics) for scorer in scorers}
        self._features = ByBlock(FeatureStatistics)
        self._spatial = ByBlock(FeatureStatistics)
        self._classes = ByBlock(ClassSums)
        self._values = ByBlock(FeatureStatistics)
        self._pairs = ByBlock(PairedSums)
        self._points = Subset(num, POINTS_LIMIT)

    @property
    def seen(self) -> int:
        """Number of samples that were added."""
        return self._points.seen

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all sums by name, to be stored in a file."""
        points = {"points.seen": np.asarray(self.seen), "points.kept": self._points.vectors()}
        return points | {f"{name}.{key}": array for name, sums in self._sums().items() for key, array in sums.arrays().items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums that `arrays` returned for the same number of samples and the same scorers."""
        self._points.restore(int(arrays["points.seen"]), arrays["points.kept"])
        for name, sums in self._sums().items():
            sums.restore({key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")})

    def _sums(self) -> dict[str, ByBlock[Any]]:
        sums: dict[str, ByBlock[Any]] = {f"scored-{figure}": scored for figure, scored in self._scored.items()}
        return sums | {
            "features": self._features,
            "spatial": self._spatial,
            "classes": self._classes,
            "values": self._values,
            "pairs": self._pairs,
        }

    def add(self, states: Float32, full_precision: Float32 | None = None, rows: Int64 | None = None) -> None:
        """Add the next samples [n, C, H, W] as the sampler returns them, in order of sample number.

        Args:
            states: the samples; clipped to [-1, 1] as images, but not for the statistics of state values.
            full_precision: the same samples from the full-precision network, for the paired figures; give it for all batches or for none.
            rows: conditioning row of each sample; None if no scorer asks for it.
        """
        every = np.zeros(len(states), dtype=np.int64) if rows is None else rows
        able = [scorer for scorer in self._scorers if full_precision is not None or not scorer.paired]
        values = {scorer.figure: scorer(states, full_precision, every) for scorer in able}
        self.take(measure(self._extractor, states, full_precision, seen=self.seen, num=self._num), values)

    def take(self, measured: Measured, scored: Mapping[str, Float32] = MappingProxyType({})) -> None:
        """Add the next samples, measured as `add` would measure them, and the scorers' values [n] by figure."""
        for block, part, values, pairs in measured.parts():
            self._values.add(block, values)
            self._add(block, measured.features, part)
            for figure, ones in scored.items():
                self._scored[figure].add(block, FeatureStatistics.of(ones[part, None]))
            if pairs is not None:
                self._pairs.add(block, pairs)
        self._points.add(measured.features.features)

    def _add(self, block: int, features: Features, part: slice) -> None:
        self._features.add(block, FeatureStatistics.of(features.features[part]))
        if features.spatial is not None and self._reference.spatial is not None:
            self._spatial.add(block, FeatureStatistics.of(features.spatial[part]))
        if features.logits is not None:
            self._classes.add(block, ClassSums.of(features.logits[part]))

    def estimates(self) -> dict[str, Estimate]:
        """Return every figure that the reference and the extractor allow, by name. All samples must have been added."""
        if self.seen != self._num:
            raise ValueError(f"{self.seen} of {self._num} samples were added")
        return self._distances() | self._diversity() | self._of_values() | self._paired() | self._of_scorers()

    def distance(self, reference: Reference) -> Estimate:
        """Return the Frechet distance to another reference of the same extractor. All samples must have been added."""
        return _distance(self._features, reference.features)

    def _distances(self) -> dict[str, Estimate]:
        estimates = {FRECHET_DISTANCE: _distance(self._features, self._reference.features)}
        if self._spatial.blocks and self._reference.spatial is not None:
            estimates[SPATIAL_FRECHET_DISTANCE] = _distance(self._spatial, self._reference.spatial)
        return estimates

    def _diversity(self) -> dict[str, Estimate]:
        estimates = {INCEPTION_SCORE: self._classes.mean(ClassSums.score)} if self._classes.blocks else {}
        if self._reference.manifold is not None:
            points = self._points.vectors()
            edges = [self._points.kept_before(edge) for edge in block_edges(self._num)]
            estimates[PRECISION] = precision(self._reference.manifold, points, edges)
            estimates[RECALL] = recall(self._reference.manifold, points, edges)
        return estimates

    def _of_values(self) -> dict[str, Estimate]:
        return {
            "mean": self._values.estimate(lambda values: values.mean.item()),
            "variance": self._values.estimate(lambda values: values.covariance.item()),
        }

    def _paired(self) -> dict[str, Estimate]:
        if not self._pairs.blocks:
            return {}
        return {
            POOLED_PSNR: self._pairs.estimate(lambda pairs: pooled_psnr(pairs.image_errors)),
            MEDIAN_PSNR: self._pairs.estimate(lambda pairs: median_psnr(pairs.image_errors)),
            "ssim": self._pairs.estimate(lambda pairs: pairs.ssim),
            "relative_l2": self._pairs.estimate(lambda pairs: pairs.relative_l2),
        }

    def _of_scorers(self) -> dict[str, Estimate]:
        return {figure: values.estimate(lambda one: one.mean.item()) for figure, values in self._scored.items() if values.blocks}


def unavailable(reference: Reference, extractor: Extractor) -> dict[str, str]:
    """Return the figures that cannot be computed, each with the reason."""
    reasons: dict[str, str] = {}
    if not extractor.gives_spatial:
        reasons[SPATIAL_FRECHET_DISTANCE] = "the extractor has no output called spatial"
    elif reference.spatial is None:
        reasons[SPATIAL_FRECHET_DISTANCE] = "the reference holds no statistics of spatial features"
    if not extractor.gives_logits:
        reasons[INCEPTION_SCORE] = "the extractor has no output called logits"
    if reference.manifold is None:
        reasons |= dict.fromkeys((PRECISION, RECALL), "the reference holds no features of individual images")
    return reasons


def warnings_about(num: int, reference: Reference, extractor: Extractor) -> tuple[str, ...]:
    """Return what to know before quoting distances of `num` samples."""
    warnings = []
    if extractor.name == SMALL_NAME:
        warnings.append(f"figures of {SMALL_NAME} compare only with each other, not with published FID")
    for name, gaussian in (("features", reference.features), ("spatial features", reference.spatial)):
        if gaussian is not None and num <= len(gaussian.mean):
            warnings.append(
                f"{num} samples do not span {len(gaussian.mean)} {name}: their covariance is singular, "
                "and the Frechet distance is far larger than with many samples"
            )
    return tuple(warnings)


def _distance(statistics: ByBlock[FeatureStatistics], reference: Gaussian) -> Estimate:
    return statistics.estimate(lambda moments: frechet_distance(moments.gaussian(), reference))
