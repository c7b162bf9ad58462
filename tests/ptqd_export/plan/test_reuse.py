"""The sections `reuse` and `steps.reuse`."""

from __future__ import annotations

from typing import Any

import pytest

from ptqd_export.plan import ReusingStepsSection, load_plan
from tests.ptqd_export.plan.plans import Write, problems

AUTO, TWO = {"cuts": "auto"}, {"cuts": ["skip_1", "skip_3"]}


def test_every_second_step_keeps_what_the_next_one_reuses() -> None:
    assert ReusingStepsSection(every=2).of(5) == {1, 3}
    assert ReusingStepsSection(every=3).of(7) == {1, 2, 4, 5}
    assert ReusingStepsSection(steps=(4, 2)).of(7) == {2, 4}


@pytest.mark.parametrize("reuse", [{"every": 2}, {"cut": "skip_3", "steps": [3, 19], "extrapolate": True}])
@pytest.mark.parametrize("policy", [{"policy": "snr"}, {"policy": "fixed", "precisions": ["w8a8"]}])
def test_steps_of_the_chain_may_reuse_features(write: Write, reuse: dict[str, Any], policy: dict[str, Any]) -> None:
    assert load_plan(write(reuse=TWO, steps={**policy, "reuse": reuse})).plan.steps.reuse == ReusingStepsSection.model_validate(reuse)


@pytest.mark.parametrize(
    ("reuse", "steps", "problem"),
    [
        (None, {"every": 2}, 'expected "reuse": {"cuts": "auto"}, or the name of a cut, in the plan'),
        (TWO, {"cut": "skip_2", "every": 2}, 'steps.reuse.cut: found "skip_2", expected "skip_1" or "skip_3"; did you mean "skip_3"?'),
        (AUTO, {"steps": [3, 20]}, "steps.reuse.steps[1]: found 20, expected 1 to 19, steps of the chain"),
        (AUTO, {"steps": [0]}, "steps.reuse.steps[0]: found 0, expected 1 or more"),
        (AUTO, {"every": 2, "steps": [1]}, 'expected either "every" or "steps"'),
        (AUTO, {}, 'expected either "every" or "steps"'),
    ],
)
def test_steps_that_no_chain_has_are_refused(write: Write, reuse: Any, steps: dict[str, Any], problem: str) -> None:
    sections = {} if reuse is None else {"reuse": reuse}
    (found,) = problems(write(**sections, steps={"policy": "snr", "reuse": steps}))
    assert problem in found


def test_budget_chooses_the_steps_that_reuse_itself_and_takes_only_their_cut(write: Write) -> None:
    budget = {"policy": "budget", "budget": 0.5}
    (found,) = problems(write(reuse=AUTO, steps={**budget, "reuse": {"every": 2}}))
    assert 'no "every", "steps" or "extrapolate" of "reuse" with the policy "budget"' in found
    (found,) = problems(write(reuse=AUTO, steps={**budget, "reuse": {"extrapolate": True}}))
    assert 'no "every", "steps" or "extrapolate"' in found
    found_reuse = load_plan(write(reuse=TWO, steps={**budget, "reuse": {"cut": "skip_3"}})).plan.steps.reuse
    assert found_reuse == ReusingStepsSection(cut="skip_3")


def test_networks_with_residuals_have_no_cuts(write: Write) -> None:
    model = {"path": "model", "conditions": "conditions.npz", "control": {}}
    assert load_plan(write(model=model, reuse=AUTO)).plan.reuse.cuts == ()
    (found,) = problems(write(model=model, reuse=TWO))
    assert 'reuse.cuts: found ["skip_1", "skip_3"], expected [] together with model.control' in found
    (found,) = problems(write(model=model, reuse=AUTO, steps={"policy": "snr", "reuse": {"every": 2}}))
    assert "expected null together with model.control" in found
