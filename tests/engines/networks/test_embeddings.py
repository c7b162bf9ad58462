"""What depends on timestep and condition alone: computed once, ahead of the steps, and within a bound of memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.networks import embeddings
from engines.networks.conditioning import NULL_ROW, Conditioning, class_labels
from engines.networks.embeddings import Embedding

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
TIME, LABEL, TEXT = TensorSpec("timestep", FLOAT32, ()), TensorSpec("class_labels", INT64, ()), TensorSpec("text", FLOAT32, (2,))
LABELS = class_labels(10, 10)


class Recorder(Engine):
    """Gives back the sums of its inputs' rows and their negatives, and remembers the rows of every call."""

    def __init__(self, *inputs: TensorSpec) -> None:
        super().__init__("recorder", inputs, TensorSpec("embedding_0", FLOAT32, (2,)))
        self.calls: list[list[tuple[float, ...]]] = []

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        rows = np.column_stack([feeds[spec.name].reshape(len(feeds[spec.name]), -1) for spec in self.inputs])
        self.calls.append([tuple(row) for row in rows.tolist()])
        sums = rows.sum(axis=1)
        return [np.stack([sums, -sums], axis=1).astype(np.float32)]


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def first(out: Float32) -> list[float]:
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[:, 1], -out[:, 0])
    values: list[float] = out[:, 0].tolist()
    return values


def test_each_pair_of_timestep_and_row_is_computed_once() -> None:
    engine = Recorder(TIME, LABEL)
    embedding = Embedding(engine, LABELS)
    assert first(embedding(100.0, rows(3, 5, 3, NULL_ROW, NULL_ROW))) == [103.0, 105.0, 103.0, 110.0, 110.0]
    assert first(embedding(100.0, rows(5, 7))) == [105.0, 107.0]
    assert first(embedding(200.0, rows(5))) == [205.0]
    assert first(embedding(100.0, rows(7, NULL_ROW))) == [107.0, 110.0]
    assert engine.calls == [[(100, 3), (100, 5), (100, 10)], [(100, 7)], [(200, 5)]]


def test_steps_to_come_are_computed_with_the_first() -> None:
    engine = Recorder(TIME, LABEL)
    embedding = Embedding(engine, LABELS, [30.0, 20.0, 10.0])
    for timestep in (30.0, 20.0, 10.0):
        assert first(embedding(timestep, rows(1, 2))) == [timestep + 1, timestep + 2]
    assert engine.calls == [[(30, 1), (30, 2), (20, 1), (20, 2), (10, 1), (10, 2)]]
    assert first(embedding(20.0, rows(2, 4))) == [22.0, 24.0]
    assert engine.calls[1:] == [[(20, 4), (10, 4)]]
    assert first(embedding(25.0, rows(4))) == [29.0]
    assert engine.calls[2:] == [[(25, 4)]]


def test_what_depends_on_the_timestep_alone_is_the_same_for_all_rows() -> None:
    engine = Recorder(TIME)
    embedding = Embedding(engine, None, [2.0, 1.0])
    assert first(embedding(2.0, rows(0, 4, 4))) == [2.0, 2.0, 2.0]
    assert first(embedding(1.0, rows(9))) == [1.0]
    assert engine.calls == [[(2,), (1,)]]


def test_what_depends_on_the_condition_alone_is_the_same_at_all_timesteps() -> None:
    engine = Recorder(TEXT)
    table = Conditioning({"text": np.array([[1, 2], [3, 4]], dtype=np.float32)}, {"text": np.array([5, 6], dtype=np.float32)})
    embedding = Embedding(engine, table, [2.0, 1.0])
    for timestep in (2.0, 1.0):
        assert first(embedding(timestep, rows(1, 0, NULL_ROW))) == [7.0, 3.0, 11.0]
    assert engine.calls == [[(3, 4), (1, 2), (5, 6)]]


def test_rows_of_another_table_are_computed_anew() -> None:
    engine = Recorder(TEXT)
    one, other = (Conditioning({"text": np.full((1, 2), value, dtype=np.float32)}, None) for value in (1, 2))
    embedding = Embedding(engine, one)
    assert first(embedding(0.0, rows(0))) == [2.0]
    assert first(embedding.conditioned(other)(0.0, rows(0))) == [4.0]
    assert first(embedding(0.0, rows(0))) == [2.0]
    assert engine.calls == [[(1, 1)], [(2, 2)]]


def test_the_table_does_not_matter_to_what_depends_on_the_timestep_alone() -> None:
    engine = Recorder(TIME)
    embedding = Embedding(engine, class_labels(1, None))
    embedding(1.0, rows(0))
    embedding.conditioned(class_labels(2, None))(1.0, rows(1))
    assert engine.calls == [[(1,)]]


def test_what_was_forgotten_is_computed_again() -> None:
    engine = Recorder(TIME)
    embedding = Embedding(engine, None)
    for _ in range(2):
        embedding(1.0, rows(0))
        embedding.forget()
    assert engine.calls == [[(1,)], [(1,)]]


ROW_BYTES = 8
"""Of a result of `Recorder`."""


def test_what_was_used_longest_ago_is_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "KEPT_BYTES", 3 * ROW_BYTES)
    engine = Recorder(TIME, LABEL)
    embedding = Embedding(engine, LABELS)
    for row in (1, 2, 3, 1, 4):
        embedding(0.0, rows(row))
    assert engine.calls == [[(0, 1)], [(0, 2)], [(0, 3)], [(0, 4)]]
    embedding(0.0, rows(1, 3))
    assert len(engine.calls) == 4
    embedding(0.0, rows(2))
    assert engine.calls[4:] == [[(0, 2)]]


def test_call_of_more_rows_than_are_kept_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "KEPT_BYTES", ROW_BYTES)
    embedding = Embedding(Recorder(TIME, LABEL), LABELS, [1.0, 0.0])
    for timestep in (1.0, 0.0):
        assert first(embedding(timestep, rows(5, 4, 3))) == [timestep + row for row in (5, 4, 3)]


def test_no_call_of_the_engine_gives_more_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BLOCK_BYTES", 2 * ROW_BYTES)
    engine = Recorder(TIME, LABEL)
    embedding = Embedding(engine, LABELS, [9.0, 8.0, 7.0])
    assert first(embedding(9.0, rows(1, 2, 3))) == [10.0, 11.0, 12.0]
    assert engine.calls == [[(9, 1), (9, 2)], [(9, 3)]]
    assert first(embedding(8.0, rows(4))) == [12.0]
    assert engine.calls[2:] == [[(8, 4), (7, 4)]]
