"""The reference that samples are scored against: real images, or precomputed statistics of their features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.extractor import Extractor, Features
from engines.apps.evaluate.image_archive import BATCH, ImageArchive, readable
from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import Gaussian
from engines.apps.evaluate.metrics.manifold import NEIGHBOURS, POINTS_LIMIT, Manifold
from engines.apps.evaluate.metrics.subset import Subset
from engines.arrays import Float32
from engines.chain.finite import is_finite
from engines.errors import UsageError
from engines.host.files import replacing
from engines.terminal.progress import progress
from engines.untrusted.npz import array_names, read_arrays

_FEATURES, _SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")
_ARRAYS = (*_FEATURES, *_SPATIAL, "features", "count", "extractor")


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of the reference's images.

    Attributes:
        features: distribution of the features.
        spatial: distribution of the spatial features; None if unknown.
        manifold: manifold for precision and recall; None if unknown.
        count: number of images; None if unknown.
    """

    features: Gaussian
    spatial: Gaussian | None = None
    manifold: Manifold | None = None
    count: int | None = None

    @classmethod
    def load(cls, path: Path, extractor: Extractor, shape: tuple[int, ...]) -> Reference:
        """Load an .npz file of images (array `samples`, see `ImageArchive`) or of statistics.

        Statistics are what `save` writes, or the arrays `mu` [D] and `sigma` [D, D] of other FID programs, optionally with `mu_s` and
        `sigma_s` of the spatial features.

        Args:
            path: the archive.
            extractor: feature extractor.
            shape: [C, H, W] of the samples to be scored.

        Raises:
            UsageError: the file is not such an archive, or does not fit the extractor or the samples.
        """
        with readable(path):
            names = array_names(path)
        if set(_FEATURES) <= names:
            return _from_statistics(path, extractor, shape)
        images = ImageArchive.open(path)
        if images.shape != shape:
            raise UsageError(
                "The reference's images do not have the shape of the samples.",
                found=f"{path}: {list(images.shape)}",
                expected=str(list(shape)),
            )
        return cls.of_images(images, extractor)

    @classmethod
    def of_images(cls, images: ImageArchive, extractor: Extractor) -> Reference:
        """Compute the features of images, a few at a time.

        Raises:
            UsageError: there are too few images, they are in the wrong units, or the extractor does not take them.
        """
        if images.count <= NEIGHBOURS:
            raise UsageError(
                "The reference holds too few images.", found=f"{images.path}: {images.count}", expected=f"more than {NEIGHBOURS}"
            )
        one = extractor.check(images.shape, "the reference's images")
        images.check_units()
        with progress("features of the reference", math.ceil(images.count / BATCH)) as advance:
            return cls.of_batches(_counted(images.batches(BATCH), advance), images.count, one, extractor)

    @classmethod
    def of_batches(cls, batches: Iterable[Float32], count: int, one: Features, extractor: Extractor) -> Reference:
        """Compute the features of images that come in batches [n, C, H, W].

        Args:
            batches: the images.
            count: number of images.
            one: features of any image, which tell their dimensions.
            extractor: feature extractor.
        """
        features = FeatureStatistics.empty(one.features.shape[1])
        spatial = None if one.spatial is None else FeatureStatistics.empty(one.spatial.shape[1])
        points = Subset(count, POINTS_LIMIT)
        for batch in batches:
            more = extractor(batch)
            features = features.add(more.features)
            spatial = None if spatial is None or more.spatial is None else spatial.add(more.spatial)
            points.add(more.features)
        return cls(features.gaussian(), None if spatial is None else spatial.gaussian(), Manifold.of(points.vectors()), count)

    def save(self, path: Path, extractor: Extractor) -> None:
        """Write the statistics of a reference made from images to an .npz file, whole or not at all."""
        if self.manifold is None or self.count is None:
            raise ValueError("only a reference made from images can be saved")
        arrays: dict[str, Any] = {"mu": self.features.mean, "sigma": self.features.covariance, "extractor": extractor.digest}
        arrays |= {"features": self.manifold.points.astype(np.float32), "count": self.count}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean, "sigma_s": self.spatial.covariance}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def _counted(batches: Iterable[Float32], advance: Callable[[], None]) -> Iterator[Float32]:
    for batch in batches:
        yield batch
        advance()


def _from_statistics(path: Path, extractor: Extractor, shape: tuple[int, ...]) -> Reference:
    with readable(path):
        arrays = read_arrays(path, _ARRAYS)
    made_with = str(arrays.get("extractor", extractor.digest))
    if made_with != extractor.digest:
        raise UsageError(
            "The reference was made with another feature extractor.",
            found=f"{path}: sha256 {made_with}",
            expected=f"sha256 {extractor.digest} of {extractor.path}",
            mend="use the extractor that the reference was made with, or make the reference again",
        )
    one = extractor.check(shape, "the samples")
    features = _gaussian(arrays, _FEATURES, one.features.shape[1], path)
    spatial = None if one.spatial is None or not set(_SPATIAL) <= set(arrays) else _gaussian(arrays, _SPATIAL, one.spatial.shape[1], path)
    if "extractor" not in arrays:  # written by another program: its other arrays may mean anything
        return Reference(features, spatial)
    points, count = arrays.get("features", np.empty(0)), arrays.get("count", np.empty(0))
    whole = points.ndim == 2 and points.shape[1] == len(features.mean) and NEIGHBOURS < len(points) <= POINTS_LIMIT
    if not (whole and points.dtype.kind == "f" and is_finite(points) and count.shape == () and count.dtype.kind in "iu"):
        raise UsageError("The reference is not what `ptqd-run reference` writes.", found=path, mend="make the reference again")
    return Reference(features, spatial, Manifold.of(points), int(count))


def _gaussian(arrays: Mapping[str, NDArray[Any]], names: tuple[str, str], dimension: int, path: Path) -> Gaussian:
    mean, covariance = (np.asarray(arrays[name]) for name in names)
    if mean.shape != (dimension,) or covariance.shape != (dimension, dimension):
        raise UsageError(
            "The reference's statistics do not have the dimension of the extractor's features.",
            found=f"{path}: {names[0]} {list(mean.shape)}, {names[1]} {list(covariance.shape)}",
            expected=f"{names[0]} {[dimension]}, {names[1]} {[dimension, dimension]}",
        )
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or not (is_finite(mean) and is_finite(covariance)):
        raise UsageError("The reference's statistics are not finite.", found=f"{path}: NaN or infinity in {names[0]} or {names[1]}")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))
