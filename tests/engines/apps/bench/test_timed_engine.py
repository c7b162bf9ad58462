"""What the stopwatch counts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.apps.bench.timed_engine import Stopwatch, timed
from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.errors import PtqdError
from engines.networks.engine_denoiser import EngineDenoiser

FLOAT32 = np.dtype(np.float32)
STATE, TIME = TensorSpec("sample", FLOAT32, (1, 2)), TensorSpec("timestep", FLOAT32, ())
X, ROWS = np.ones((3, 1, 2), dtype=np.float32), np.zeros(3, dtype=np.int64)


class Clock:
    now = 0.0


class Slow(Engine):
    """Takes two seconds of the clock to double its input, and ten to check it."""

    def __init__(self) -> None:
        super().__init__("slow", (STATE, TIME), STATE)

    def _check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        Clock.now += 10
        super()._check(feeds)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        Clock.now += 2
        return [np.asarray(2 * feeds["sample"])]


def test_runs_add_up_without_checks_and_results_are_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    watch = Stopwatch()
    one, other = (timed(EngineDenoiser(Slow(), None, guided=False), watch) for _ in range(2))
    np.testing.assert_array_equal(one(X, 5.0, ROWS), [2 * X])
    other(X, 5.0, ROWS)
    Clock.now += 100
    assert watch.seconds == 4.0


def test_checks_of_the_engine_still_hold() -> None:
    denoiser = timed(EngineDenoiser(Slow(), None, guided=False), Stopwatch())
    with pytest.raises(PtqdError, match="Input sample of slow has the wrong dtype or shape"):
        denoiser(X[..., :1], 5.0, ROWS)
