"""Precision and recall against loops over pairs of points."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from engines.apps.evaluate.metrics import manifold as module
from engines.apps.evaluate.metrics.confidence import BLOCKS, block_edges
from engines.apps.evaluate.metrics.manifold import Manifold, precision, recall
from engines.arrays import Float64

REFERENCE = np.random.default_rng(0).normal(size=(90, 3))
GENERATED = np.random.default_rng(1).normal(size=(123, 3)) * 0.9 + 0.3
EDGES = block_edges(123)


def covered(queries: Float64, points: Float64) -> float:
    """Share of the queries no farther from some point than that point's third neighbour."""
    radii = [sorted(np.linalg.norm(point - other) for other in points)[3] for point in points]
    return float(np.mean([any(np.linalg.norm(q - p) <= r for p, r in zip(points, radii, strict=True)) for q in queries]))


def without(block: int) -> Float64:
    begin, end = list(pairwise([0, *EDGES, 123]))[block]
    return np.delete(GENERATED, slice(begin, end), axis=0)


@pytest.mark.parametrize("rows", [512, 10])
def test_both_are_what_their_definitions_say(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    reference = Manifold.of(REFERENCE)
    assert precision(reference, GENERATED, EDGES).value == covered(GENERATED, REFERENCE)
    assert recall(reference, GENERATED, EDGES).value == covered(REFERENCE, GENERATED)
    assert 0.2 < covered(GENERATED, REFERENCE) < 0.95


def test_a_block_left_out_is_as_if_it_had_never_been_sampled() -> None:
    reference = Manifold.of(REFERENCE)
    shares = precision(reference, GENERATED, EDGES).without_block, recall(reference, GENERATED, EDGES).without_block
    assert len(shares[0]) == len(shares[1]) == BLOCKS
    for block in (0, 4, 9):
        assert shares[0][block] == pytest.approx(covered(without(block), REFERENCE), abs=1e-12)
        assert shares[1][block] == pytest.approx(covered(REFERENCE, without(block)), abs=1e-12)
    assert len(set(shares[1])) > 3


def test_a_set_covers_itself_and_nothing_far_away() -> None:
    reference = Manifold.of(REFERENCE)
    edges = block_edges(90)
    assert precision(reference, REFERENCE, edges).value == recall(reference, REFERENCE, edges).value == 1
    assert precision(reference, REFERENCE + 100, edges).value == recall(reference, REFERENCE + 100, edges).value == 0


def test_one_mode_alone_is_precise_and_recalls_half() -> None:
    modes = np.concatenate([REFERENCE, REFERENCE + 100])
    reference, edges = Manifold.of(modes), block_edges(90)
    assert precision(reference, REFERENCE, edges).value == 1
    assert recall(reference, REFERENCE, edges).value == 0.5


def test_memory_is_that_of_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All distances between 2,000 points would take 32 MB, a block of rows 1 MB."""
    monkeypatch.setattr(module, "_ROWS", 64)
    points = np.random.default_rng(0).normal(size=(2000, 2))
    tracemalloc.start()
    try:
        recall(Manifold.of(points), points, block_edges(2000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6
