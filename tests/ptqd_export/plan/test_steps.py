"""The section `steps`: listed precisions, policies, and the sections that they need."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ptqd_export.plan import load_plan
from tests.ptqd_export.plan.plans import Write, problems


@pytest.mark.parametrize("names", [["w8a8"], ["fp32"], ["w4a8"] * 5 + ["w8a8"] * 14 + ["fp32"]])
def test_fixed_steps_take_one_name_or_one_for_each(write: Write, names: list[str]) -> None:
    assert load_plan(write(steps={"policy": "fixed", "precisions": names})).plan.steps.precisions == tuple(names)


def test_fixed_steps_of_another_length_or_with_other_names_are_refused(write: Write) -> None:
    assert problems(write(steps={"policy": "fixed", "precisions": ["w8a8", "fp16", "w4a4"]})) == [
        'steps.precisions[1]: found "fp16", expected "w8a8" or "w4a8" or "fp32"',
        'steps.precisions[2]: found "w4a4", expected "w8a8" or "w4a8" or "fp32"; did you mean "w4a8"?',
        'steps.precisions: found ["w8a8", "fp16", "w4a4"], expected 1 name, or 20 (one for each step), not 3',
    ]


def test_empty_list_of_fixed_steps_is_refused(write: Write) -> None:
    assert problems(write(steps={"policy": "fixed", "precisions": []})) == [
        "steps.precisions: found [], expected 1 name, or 20 (one for each step), not 0"
    ]


def test_fixed_steps_are_not_judged_by_a_section_that_is_itself_wrong(write: Write) -> None:
    assert problems(write(sampler={"name": "ddim", "steps": 0}, steps={"policy": "fixed", "precisions": ["w8a8"] * 3})) == [
        "sampler.steps: found 0, expected 1 or more"
    ]


def test_plms_has_a_row_more_than_steps_for_the_fixed_policy(write: Write) -> None:
    sampler = {"name": "plms", "steps": 3}
    assert load_plan(write(sampler=sampler, steps={"policy": "fixed", "precisions": ["w8a8"] * 4})).plan.steps.precisions is not None
    assert problems(write(sampler=sampler, steps={"policy": "fixed", "precisions": ["w8a8"] * 3})) == [
        'steps.precisions: found ["w8a8", "w8a8", "w8a8"], expected 1 name, or 4 (one for each step), not 3'
    ]


def test_policy_fixed_needs_precisions(write: Write) -> None:
    assert problems(write(steps={"policy": "fixed"})) == ['steps: found {"policy": "fixed"}, expected "precisions" with the policy "fixed"']


def test_policy_snr_takes_no_precisions(write: Write) -> None:
    assert problems(write(steps={"precisions": ["w8a8"]})) == [
        'steps: found {"precisions": ["w8a8"]}, expected no "precisions" with the policy "snr", or the policy "fixed"'
    ]


@pytest.mark.parametrize("steps", [{"policy": "budget"}, {"policy": "snr", "budget": 0.1}], ids=["missing", "alone"])
def test_policy_budget_and_a_budget_need_each_other(write: Write, steps: dict[str, Any]) -> None:
    assert problems(write(steps=steps)) == [
        f'steps: found {json.dumps(steps)}, expected "budget" with the policy "budget", and only with it'
    ]


def test_used_steps_must_be_known_before_the_ranges(write: Write) -> None:
    (problem,) = problems(write(quantization={"activation_steps": "used"}))
    assert 'expected the policy "fixed" with quantization.activation_steps "used"' in problem
