"""Chains that reuse features, on a tiny bundle: which steps reuse, and a row for every chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.bundle.bundle import Bundle
from ptqd_export.plan import load_plan
from tests.engines.cut_bundle import CUT, cut_bundle
from tools.bench.models import MODELS
from tools.bench.reuse import EVERY, Asked, of_length, reuse_table, reusing, time_reuse

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


@pytest.mark.parametrize("name", MODELS)
def test_plan_of_a_model_cuts_one_precision(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "conditions.npz").touch()
    plan = load_plan(MODELS[name].write_reuse(tmp_path)).plan
    assert plan.precisions == ("w8a8",)
    assert plan.reuse.cuts == MODELS[name].cuts != ()
    assert not (tmp_path / "plan.json").exists()


def test_every_chain_is_timed_and_the_first_of_each_length_is_the_fastest(own_tiny: TinyBundle) -> None:
    asked, told = Asked(batch=2, steps=(4, 7), rounds=1), list[str]()
    folder = cut_bundle(own_tiny).folder
    found = list(time_reuse(folder, asked, told.append))
    assert len(told) == 2
    assert list(time_reuse(folder, asked, told.append)) == found
    assert len(told) == 2, "finished chains are timed again"
    assert list(time_reuse(folder, replace(asked, batch=1), told.append)) != found
    assert {(one.steps, one.cut, one.every) for one in found} == {
        (steps, *chain) for steps in (4, 7) for chain in ((None, None), *((CUT, every) for every in EVERY))
    }
    assert all(one.ratio == 1 for one in found if one.cut is None)
    lines = [line.split("|") for line in reuse_table("tiny", asked, found) if line.startswith("| ") and "x |" in line]
    assert len(lines) == len(found) == 2 * (1 + len(EVERY))
    for steps in ("4", "7"):
        ratios = [float(line[5].strip().rstrip("x")) for line in lines if line[1].strip() == steps]
        assert ratios == sorted(ratios, reverse=True)


def test_longer_chain_repeats_steps_and_reuses_all_but_every_third(opened: Bundle) -> None:
    schedule = reusing(of_length(opened.schedule(), 7), CUT, 3)
    assert [step.step for step in schedule.steps] == list(range(7))
    assert [step.reuse is None for step in schedule.steps] == [True, False, False, True, False, False, True]
    assert {step.timestep for step in schedule.steps} == {step.timestep for step in opened.schedule().steps}


@pytest.fixture
def opened(tiny: TinyBundle) -> Bundle:
    return Bundle.open(tiny.folder)
