"""The ablation's rows: what is refitted comes after what it is refitted from, and nothing is done twice."""

from __future__ import annotations

import pytest

from tools.ablation.ablation_rows import AUTO, SETTINGS, Row, Setting, full_precision_row, mixed_rows, uniform_rows

EVERY = tuple(SETTINGS.values())


@pytest.mark.parametrize("setting", EVERY, ids=SETTINGS)
def test_a_refit_comes_after_the_walk_that_it_reads(setting: Setting) -> None:
    seen: set[str] = set()
    for row in uniform_rows("w4a8", setting):
        assert seen or (row.label, row.request.fit) == (setting.ours, "walk")
        assert row.request.fit == "walk" or row.request.base in seen
        seen.add(row.name)


@pytest.mark.parametrize("setting", EVERY, ids=SETTINGS)
def test_every_correction_has_one_row(setting: Setting) -> None:
    labels = [row.label for row in uniform_rows("w4a8", setting)]
    assert sorted(labels) == sorted(contender.label for contender in setting.contenders)
    assert {"none", setting.paper, setting.ours, AUTO} <= set(labels)


def test_every_row_has_a_name_of_its_own() -> None:
    rows = [row for setting in EVERY for precision in ("w8a8", "w4a8") for row in uniform_rows(precision, setting)]
    rows += [full_precision_row(setting) for setting in EVERY]
    rows += mixed_rows({"snr": ("w4a8", "w8a8"), "budget": ("w8a8", "w4a8")}, SETTINGS["eta1"])
    assert len({row.name for row in rows}) == len(rows)


def test_a_name_says_precision_setting_and_parts() -> None:
    (row,) = (row for row in uniform_rows("w4a8", SETTINGS["eta1"]) if row.label == "+ variance")
    assert row.name == "w4a8-eta1-plus-variance"


@pytest.mark.parametrize("setting", EVERY, ids=SETTINGS)
def test_every_correction_is_another_one(setting: Setting) -> None:
    def settings(row: Row) -> tuple[object, ...]:
        return row.request.mode, row.request.parts, row.request.variance

    rows = list(uniform_rows("w4a8", setting))
    assert len({settings(row) for row in rows}) == len(rows)


def test_chains_without_fresh_noise_calibrate_no_variance() -> None:
    def variances(name: str) -> set[str | None]:
        return {row.request.variance for row in uniform_rows("w4a8", SETTINGS[name])}

    assert variances("eta1") == {"none", "schedule"}
    assert variances("eta0") == {"none", "drift", "q-drift", "shift"}
    assert variances("2m") == {"none", "drift", "q-drift"}


def test_a_setting_asks_for_its_sampler() -> None:
    assert {name: (setting.sampler, setting.eta) for name, setting in SETTINGS.items()} == {
        "eta1": (None, 1.0),
        "eta0": (None, 0.0),
        "2m": ("dpm++2m", 0.0),
    }
    assert {row.request.sampler for row in uniform_rows("w4a8", SETTINGS["2m"])} == {"dpm++2m"}


def test_every_chain_of_a_sampler_with_history_is_walked() -> None:
    assert {row.request.fit for row in uniform_rows("w4a8", SETTINGS["2m"])} == {"walk"}


def test_a_mixture_lists_every_step() -> None:
    (row,) = mixed_rows({"snr": ("w4a8", "w8a8")}, SETTINGS["eta1"])
    assert (row.precision, row.request.policy, row.request.precisions, row.request.fit) == (None, "fixed", ("w4a8", "w8a8"), "walk")
