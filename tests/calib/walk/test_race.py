"""Races of contenders with made-up errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from calib.walk.race import Behind, Race, race
from engines.arrays import Float64

SIZE = 8


def _errors(means: dict[str, float], spread: float, calls: list[tuple[str, int]]) -> Callable[[str, int], Float64]:
    """Return a function that draws errors around each contender's mean; what a round's samples have in common is far larger."""

    def measure(name: str, number: int) -> Float64:
        calls.append((name, number))
        common = 100 * np.random.default_rng(number).standard_normal(SIZE)
        own = spread * np.random.default_rng([number, *name.encode()]).standard_normal(SIZE)
        return np.asarray(common + means[name] + own)

    return measure


def _run(means: dict[str, float], spread: float = 1.0, rounds: int = 6, allowance: int = 1000) -> tuple[Race[str], list[tuple[str, int]]]:
    calls: list[tuple[str, int]] = []
    return race([*means], _errors(means, spread, calls), rounds, allowance), calls


def test_differences_are_paired() -> None:
    """A lead of 2 dB is found among common differences of 100 dB."""
    found, _ = _run({"a": 2.0, "b": 0.0, "c": 4.0})
    assert found.winner == "b"
    behind = Behind.of(found.errors["c"], found.errors["b"])
    assert behind.mean == pytest.approx(4, abs=4 * behind.standard_error)
    assert 0 < behind.standard_error < 1


def test_losers_drop_out_and_equals_go_on() -> None:
    found, calls = _run({"far": 20.0, "one": 0.0, "other": 0.0}, rounds=3)
    assert [number for name, number in calls if name == "far"] == [0]
    assert [number for name, number in calls if name == "one"] == [0, 1, 2]
    assert set(found.left) == {"one", "other"}
    assert len(found.errors["far"]) == SIZE
    assert len(found.errors["other"]) == 3 * SIZE


def test_race_ends_with_one_left() -> None:
    _, calls = _run({"far": 20.0, "near": 0.0})
    assert len(calls) == 2


@pytest.mark.parametrize(("allowance", "rounds"), [(0, 1), (2, 1), (5, 2), (6, 3)])
def test_the_first_round_runs_in_any_case_and_the_others_as_far_as_allowed(allowance: int, rounds: int) -> None:
    _, calls = _run({"one": 0.0, "other": 0.0}, allowance=allowance)
    assert len(calls) == 2 * rounds


def test_the_best_go_on_where_a_round_for_all_does_not_fit() -> None:
    """Four contenders and 1 for each round: after a first round for 5, 3.5 of 8.5 are left, which is a second one for two."""
    calls = list[tuple[str, int]]()
    means = {"worst": 0.6, "good": 0.1, "best": 0.0, "bad": 0.5}
    found = race([*means], _errors(means, 0.3, calls), rounds=6, allowance=8.5, shared=1.0)
    again = {name for name, number in calls if number == 1}
    assert again == set(sorted(means, key=lambda name: float(found.errors[name][:SIZE].mean()))[:2])
    assert {number for _, number in calls} == {0, 1}
    assert set(found.left) <= again


def test_the_winner_is_significantly_behind_nobody() -> None:
    """Of 200 races with small leads, whoever dropped out early included; in every second one not all fit into all rounds."""
    for seed in range(200):
        means = dict(zip("abcdef", np.random.default_rng(seed).uniform(0, 1, 6).tolist(), strict=True))
        found, _ = _run(means, rounds=4, allowance=1000 if seed % 2 else 15)
        best = found.errors[found.winner]
        assert not any(Behind.of(best, errors).is_significant for errors in found.errors.values())


def test_equal_contenders_are_not_behind_each_other() -> None:
    same = np.arange(4.0)
    assert not Behind.of(same, same).is_significant
    assert Behind.of(same, same[:1]).standard_error == np.inf


def test_relatives_of_the_first_winner_join_with_the_same_rounds() -> None:
    calls = list[tuple[str, int]]()
    family = {"one": ["nearer"], "far": ["farther"]}
    measure = _errors({"far": 20.0, "one": 0.0, "nearer": -5.0, "farther": 25.0}, 1.0, calls)
    found = race(["far", "one"], measure, 4, 1000, relatives=lambda name: family[name])
    assert found.winner == "nearer"
    assert sorted(calls) == [("far", 0), ("nearer", 0), ("one", 0)]
