"""Improved precision and recall (Kynkaanniemi et al. 2019).

A set's manifold is the union of balls around its points, each of which reaches to the point's third neighbour. Distances are computed in
float64 for a bounded number of rows at a time. Radii and distances are squared throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate
from engines.arrays import Float64

NEIGHBOURS = 3
POINTS_LIMIT = 10_000
"""Maximum number of points in a manifold."""

_ROWS = 512


@dataclass(frozen=True, eq=False)
class Manifold:
    """Balls around points: `points` [M, D] and squared `radii` [M]."""

    points: Float64
    radii: Float64

    @classmethod
    def of(cls, features: NDArray[np.floating[Any]]) -> Manifold:
        """Return the manifold of features [M, D], M greater than `NEIGHBOURS`."""
        points = features.astype(np.float64)
        return cls(points, _radii(_nearest(points, [])))


def precision(manifold: Manifold, features: NDArray[np.floating[Any]], edges: Sequence[int]) -> Estimate:
    """Return the share of the samples' features [M, D] within the reference's manifold. Their blocks 1, 2, ... begin at `edges`."""
    inside = covered(features.astype(np.float64), manifold.points, manifold.radii[None])[0]
    blocks = np.split(inside, edges)
    return Estimate.mean_of_blocks(np.array([float(block.sum()) for block in blocks]), np.array([float(len(block)) for block in blocks]))


def recall(manifold: Manifold, features: NDArray[np.floating[Any]], edges: Sequence[int]) -> Estimate:
    """Return the share of the reference's points within the manifold of the samples' features [M, D]."""
    points = features.astype(np.float64)
    nearest = _nearest(points, edges)
    radii = np.stack([_radii(nearest), *(_radii([*nearest[:block], *nearest[block + 1 :]]) for block in range(BLOCKS))])
    for block, own in enumerate(np.split(radii, edges, axis=1)):
        own[1 + block] = -1.0  # points left out cover nothing
    shares = covered(manifold.points, points, radii).mean(axis=1)
    return Estimate(float(shares[0]), shares[1:])


def covered(queries: Float64, points: Float64, radii: Float64) -> NDArray[np.bool_]:
    """Return [V, Q]: whether each query [Q, D] lies in a ball around any of the points [M, D], for V sets of radii [V, M]."""
    return np.concatenate(
        [np.stack([(distances <= r).any(axis=1) for r in radii]) for distances in _squared_distances(queries, points)], axis=1
    )


def _nearest(points: Float64, edges: Sequence[int]) -> list[Float64]:
    """Return for each block the squared distances [M, at most NEIGHBOURS + 1] of every point to its nearest points, itself included."""
    rows = [[_smallest(block) for block in np.split(distances, edges, axis=1)] for distances in _squared_distances(points, points)]
    return [np.concatenate(block) for block in zip(*rows, strict=True)]


def _smallest(distances: Float64) -> Float64:
    """Return the smallest distances of every row, as many as a neighbourhood needs; a copy, as a view would keep all distances alive."""
    return np.partition(distances, min(NEIGHBOURS, distances.shape[1] - 1), axis=1)[:, : NEIGHBOURS + 1].copy()


def _radii(nearest: Sequence[Float64]) -> Float64:
    """Return [M] squared distances to the third neighbour in the given blocks. The smallest distance is that of a point to itself."""
    return np.asarray(_smallest(np.concatenate(nearest, axis=1)).max(axis=1))


def _squared_distances(queries: Float64, points: Float64) -> Iterator[Float64]:
    """Yield the distances of consecutive queries [Q, D] to all points [M, D], at most [_ROWS, M] at a time."""
    squares = np.square(points).sum(axis=1)
    for begin in range(0, len(queries), _ROWS):
        some = queries[begin : begin + _ROWS]
        yield (np.square(some).sum(axis=1)[:, None] + squares - 2 * some @ points.T).clip(0)
