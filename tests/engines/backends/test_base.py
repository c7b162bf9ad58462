"""The checks that every backend inherits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.errors import PtqdError

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
INPUTS = (TensorSpec("sample", FLOAT32, (2, 3)), TensorSpec("label", INT64, ()))


class Sum(Engine):
    """Adds its inputs."""

    def __init__(self) -> None:
        super().__init__("the sum", INPUTS, TensorSpec("out", FLOAT32, (2, 3)))
        self.runs = 0

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        self.runs += 1
        return [np.asarray(feeds["sample"] + feeds["label"][:, None, None].astype(np.float32))]


def feeds(**changes: Any) -> dict[str, Any]:
    return {"sample": np.ones((4, 2, 3), dtype=np.float32), "label": np.arange(4)} | changes


@pytest.mark.parametrize("batch", [1, 4])
def test_right_feeds_run_at_any_batch_size(batch: int) -> None:
    out = Sum().run({"label": np.full(batch, 2), "sample": np.ones((batch, 2, 3), dtype=np.float32)})
    np.testing.assert_array_equal(out, np.full((batch, 2, 3), 3.0))


@pytest.mark.parametrize(
    ("wrong", "found", "expected"),
    [
        ({"sample": feeds()["sample"]}, "sample", "sample, label"),
        (feeds(extra=np.zeros(4)), "sample, label, extra", "sample, label"),
        ({"sample": feeds()["sample"], "labels": feeds()["label"]}, "sample, labels", "sample, label"),
        (feeds(sample=np.ones((4, 2, 3))), "float64 (4, 2, 3)", "float32 (4, 2, 3)"),
        (feeds(label=np.arange(4, dtype=np.int32)), "int32 (4,)", "int64 (4,)"),
        (feeds(sample=np.ones((4, 3, 2), dtype=np.float32)), "float32 (4, 3, 2)", "float32 (4, 2, 3)"),
        (feeds(label=np.arange(3)), "int64 (3,)", "int64 (4,)"),
        (feeds(label=np.zeros((4, 1), dtype=np.int64)), "int64 (4, 1)", "int64 (4,)"),
    ],
    ids=["missing", "unknown", "misnamed", "float64", "int32", "shape", "batch", "rank"],
)
def test_wrong_feeds_are_refused_before_the_runtime_sees_them(wrong: dict[str, Any], found: str, expected: str) -> None:
    engine = Sum()
    with pytest.raises(PtqdError) as caught:
        engine.run(wrong)
    message = str(caught.value)
    assert "the sum" in message
    assert f"  found:    {found}\n  expected: {expected}" in message
    assert engine.runs == 0


def test_output_without_a_row_for_each_of_the_inputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sum, "_run", lambda *_: [np.zeros((3, 2, 3), dtype=np.float32)])
    with pytest.raises(PtqdError, match=r"(?s)output of the sum has the wrong shape.*found:    \[3, 2, 3\].*expected: 4 rows"):
        Sum().run(feeds())
