"""Stages left and the time left, told while a build runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ptqd_export.stages.build_estimate import BuildEstimate
from ptqd_export.stages.build_progress import ProgressTracker
from ptqd_export.stages.reporter import BuildProgress

ESTIMATE = BuildEstimate({"b": 10.0, "c": 20.0, "d": 5.0}, 1234, 0.05)


@pytest.fixture
def told() -> list[BuildProgress]:
    return []


@pytest.fixture
def tracker(told: list[BuildProgress], monkeypatch: pytest.MonkeyPatch) -> ProgressTracker:
    """A tracker of the stages a, b, c and d whose clock is 10 s further on every look, and which has a measured `ESTIMATE`."""
    monkeypatch.setattr("ptqd_export.stages.build_progress.time.monotonic", iter(range(0, 10_000, 10)).__next__)
    made = ProgressTracker(told.append)
    made.plan(("a", "b", "c", "d"))
    made.estimate_with(lambda _stages: ESTIMATE)
    return made


def test_reused_stages_are_told_once_and_do_not_ask_for_an_estimate(tracker: ProgressTracker, told: list[BuildProgress]) -> None:
    tracker.finish("a", 0.1, reused=True)
    assert told == [BuildProgress("a", 0, None, True, True, 0.1, ("b", "c", "d"), None)]


def test_the_estimate_is_for_the_first_stage_that_starts_and_those_that_follow(told: list[BuildProgress]) -> None:
    asked: list[list[str]] = []
    tracker = ProgressTracker(told.append)
    tracker.plan(("a", "b", "c", "d"))

    def estimate(stages: Sequence[str]) -> BuildEstimate:
        asked.append([*stages])
        return ESTIMATE

    tracker.estimate_with(estimate)
    tracker.finish("a", 0.1, reused=True)
    tracker.start("b")
    tracker.start("c")
    assert asked == [["b", "c", "d"]]
    assert [progress.estimate for progress in told] == [None, ESTIMATE, ESTIMATE]


def test_nothing_is_measured_for_nobody() -> None:
    tracker = ProgressTracker(None)
    tracker.estimate_with(lambda _stages: pytest.fail("measured"))
    tracker.start("b")
    tracker.finish("b", 1.0, reused=False)


def test_time_left_follows_the_work_that_is_done(tracker: ProgressTracker, told: list[BuildProgress]) -> None:
    tracker.start("b")
    assert told[-1].seconds_left == 35.0
    tracker.advance(1, 4)  # 10 s for a quarter of b
    assert (told[-1].seconds, told[-1].seconds_left) == (10, 30.0 + 25.0)


def test_time_left_follows_the_pace_of_the_stages_so_far(tracker: ProgressTracker, told: list[BuildProgress]) -> None:
    tracker.start("b")
    tracker.finish("b", 15.0, reused=False)
    assert told[-1].seconds_left == pytest.approx(1.5 * 25.0)
    tracker.start("c")
    tracker.finish("c", 2000.0, reused=False)
    assert told[-1].seconds_left == pytest.approx(2 * 5.0), "at most twice as slow as estimated"
    assert told[-1].stages_left == ("d",)


def test_a_planned_stage_that_does_not_happen_is_passed_over(tracker: ProgressTracker, told: list[BuildProgress]) -> None:
    tracker.start("c")
    assert told[-1].stages_left == ("d",)


def test_the_estimate_names_the_longest_stages() -> None:
    assert str(ESTIMATE) == "about 35 s: 1,234 network evaluations, 50 ms each at full precision; c 20 s, b 10 s, d 5 s"
    assert str(BuildEstimate({"statistics": 300.0}, 10, 0.001)).startswith("about 5 min: 10 network evaluations, 1 ms each")


def test_a_long_build_is_told_how_it_gets_shorter() -> None:
    quicker = {"calibration.samples 128": 7000.0, 'correction.mode "joint"': 1200.0}
    assert str(BuildEstimate({"statistics": 9000.0}, 10, 1.0, quicker)).endswith(
        '1000 ms each at full precision; statistics 2.5 h. Quicker: calibration.samples 128 saves about 1.9 h, correction.mode "joint" '
        "saves about 20 min, --ray shares the walk among machines"
    )
    assert "Quicker" not in str(BuildEstimate({"statistics": 3500.0}, 10, 1.0, quicker))
    on_gpu = str(BuildEstimate({"statistics": 9000.0}, 10, 1.0, quicker, idle_gpu=True))
    assert 'target.measure "torch" with calibration.device "cuda" measures on the GPU, --ray' in on_gpu
    assert "--ray" not in str(BuildEstimate({"statistics": 9000.0}, 10, 1.0, quicker, on_a_cluster=True))
