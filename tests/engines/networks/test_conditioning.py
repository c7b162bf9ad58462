"""Conditioning tables: what the network is fed, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import UsageError
from engines.networks.conditioning import Conditioning, class_labels, load_table

ROWS = np.array([2, 0, 2], dtype=np.int64)
TOKENS = np.arange(12.0).reshape(3, 2, 2)
POOLED = np.arange(3) * 10


def saved(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def test_class_labels_are_the_rows_themselves() -> None:
    labels = class_labels(10, 10)
    assert labels.rows == 10
    feeds = labels.feeds(ROWS, guided=False)
    assert list(feeds) == ["class_labels"]
    assert feeds["class_labels"].dtype == np.int64
    assert feeds["class_labels"].tolist() == [2, 0, 2]


def test_under_guidance_the_unconditional_half_comes_second() -> None:
    assert class_labels(10, 7, "y").feeds(ROWS, guided=True)["y"].tolist() == [2, 0, 2, 7, 7, 7]


def test_every_table_is_fed_by_row_and_with_its_own_null_value() -> None:
    null = {"tokens": np.full((2, 2), -1.0), "pooled": np.asarray(5)}
    table = Conditioning({"tokens": TOKENS, "pooled": POOLED}, null)
    feeds = table.feeds(ROWS, guided=True)
    np.testing.assert_array_equal(feeds["tokens"], [*TOKENS[ROWS], *[[[-1, -1], [-1, -1]]] * 3])
    assert feeds["pooled"].tolist() == [20, 0, 20, 5, 5, 5]


def test_rows_of_a_bundle_stay_its_own_with_other_images() -> None:
    table = Conditioning({"tokens": TOKENS, "image": np.zeros((3, 1, 2, 2))}, None)
    assert table.at(ROWS).with_image(np.ones((1, 1, 2, 2), np.float32)).own_rows is None
    own = table.of_bundle().at(ROWS).with_image(np.ones((1, 1, 2, 2), np.float32)).own_rows
    assert own is not None
    assert own.tolist() == [2, 0, 2]


def test_file_holds_tables_and_null_values_in_the_two_types_of_networks(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "c.npz", tokens=TOKENS, ids=POOLED.astype(np.int32), **{"null.tokens": np.zeros((2, 2)), "null.ids": np.uint8(9)}
    )
    table = load_table(path)
    assert table.rows == 3
    feeds = table.feeds(ROWS, guided=True)
    assert {name: value.dtype for name, value in feeds.items()} == {"tokens": np.dtype(np.float32), "ids": np.dtype(np.int64)}
    assert feeds["ids"].tolist() == [20, 0, 20, 9, 9, 9]
    np.testing.assert_array_equal(feeds["tokens"][:3], TOKENS[ROWS])


def test_file_without_null_values_cannot_guide(tmp_path: Path) -> None:
    assert load_table(saved(tmp_path / "c.npz", tokens=TOKENS)).null is None


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "contains no valid table"),
        ({"tokens": TOKENS, "ids": np.arange(4)}, "tokens (3, 2, 2), ids (4,)"),
        ({"tokens": TOKENS, "null.tokens": np.zeros(2)}, "null.tokens (2,)"),
        ({"tokens": TOKENS, "null.other": np.zeros((2, 2))}, "null.other (2, 2)"),
        ({"tokens": np.array([{"a": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_unusable_table_is_an_error_of_usage(tmp_path: Path, arrays: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_table(saved(tmp_path / "c.npz", **arrays))
    assert complaint in str(caught.value)


def test_missing_file_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)cannot be read.*none\.npz"):
        load_table(tmp_path / "none.npz")


def test_manifest_record_describes_the_inputs_of_one_sample() -> None:
    table = Conditioning({"tokens": TOKENS.astype(np.float32), "ids": POOLED}, None)
    record = table.record("conditioning/default.npz", None)
    assert (record.rows, record.null_class, record.file) == (3, None, "conditioning/default.npz")
    assert [(one.name, one.dtype, one.shape) for one in record.inputs] == [("tokens", "float32", (2, 2)), ("ids", "int64", ())]
