"""Turns and medians, by a clock that the contestants turn themselves."""

from __future__ import annotations

import time

import pytest

from engines.host.timing import interleaved_medians


class Clock:
    """Contestants take as long as their list says, one entry a turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.turns: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def run(self, name: str, durations: list[float]) -> None:
        self.turns.append(name)
        self.now += durations.pop(0)


def test_contestants_take_turns_and_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slow, fast = [50.0, 3.0, 9.0, 4.0], [70.0, 1.0, 2.0, 80.0]
    medians = interleaved_medians({"slow": lambda: clock.run("slow", slow), "fast": lambda: clock.run("fast", fast)}, rounds=3)
    assert medians == {"slow": 4.0, "fast": 2.0}
    assert clock.turns == ["slow", "fast"] * 4


def test_every_round_counts_without_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    durations = [8.0, 2.0]
    assert interleaved_medians({"one": lambda: clock.run("one", durations)}, rounds=2, warm_up=0) == {"one": 5.0}
