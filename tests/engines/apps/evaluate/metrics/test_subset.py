"""A bounded, even choice out of a stream."""

from __future__ import annotations

import numpy as np
import pytest

from engines.apps.evaluate.metrics.subset import Subset

STREAM = np.arange(100, dtype=np.float32).reshape(100, 1)


def kept(limit: int, size: int) -> list[float]:
    subset = Subset(100, limit)
    for begin in range(0, 100, size):
        subset.add(STREAM[begin : begin + size])
    return [float(value) for value in subset.vectors()[:, 0]]


def test_all_are_kept_where_there_is_room() -> None:
    assert kept(100, 9) == kept(1000, 9) == STREAM[:, 0].tolist()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_same_ones_are_kept_whatever_the_batch_size(size: int) -> None:
    assert kept(4, size) == [24, 49, 74, 99]


@pytest.mark.parametrize("limit", [1, 30, 99])
def test_count_kept_before_a_position(limit: int) -> None:
    values = kept(limit, 13)
    assert len(values) == limit
    subset = Subset(100, limit)
    assert [subset.kept_before(position) for position in range(101)] == [sum(v < position for v in values) for position in range(101)]
