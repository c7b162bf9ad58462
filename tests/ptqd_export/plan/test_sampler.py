"""The section `sampler`: the registered ones, and what each of them has."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engines.samplers import SAMPLERS
from ptqd_export.plan import load_plan
from tests.ptqd_export.plan.plans import Write, problems


def test_sampler_is_deterministic_and_unguided_where_the_plan_is_silent(write: Write) -> None:
    sampler = load_plan(write(sampler={"name": "ddim", "steps": 7})).plan.sampler
    assert (sampler.eta, sampler.guidance) == (0.0, 1.0)


def test_registered_samplers_are_accepted(write: Write) -> None:
    assert {"ddim", "ddpm"} <= set(SAMPLERS)
    for name in SAMPLERS:
        assert load_plan(write(sampler={"name": name, "steps": 5})).plan.sampler.name == name


def test_unknown_sampler_lists_the_registered_ones(write: Write) -> None:
    (problem,) = problems(write(sampler={"name": "dimm", "steps": 20}))
    assert problem.startswith('sampler.name: found "dimm", expected ')
    expected, hint = problem.split("expected")[1].split(";")
    assert re.findall(r'"([^"]+)"', expected) == list(SAMPLERS)
    assert hint == ' did you mean "ddim"?'


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddpm", 1.0), ("dpm++2m", 0.0), ("dpm++2m-sde", 1.0), ("euler-ancestral", 1.0)])
def test_eta_defaults_to_the_samplers_own(write: Write, name: str, eta: float) -> None:
    plan = load_plan(write(sampler={"name": name, "steps": 20})).plan
    assert plan.sampler.eta == eta
    assert f'"eta": {eta}' in plan.resolved_json()


@pytest.mark.parametrize(
    ("sampler", "problem"),
    [
        ({"name": "ddpm", "eta": 0.5}, "sampler.eta: found 0.5, expected 1 or null for the sampler ddpm"),
        ({"name": "dpm++2m", "eta": 1.0}, "sampler.eta: found 1.0, expected 0 or null for the sampler dpm++2m"),
        (
            {"name": "euler", "clip_sample": True},
            "sampler.clip_sample: found true, expected false or null for the sampler euler; true is for ddim, ddpm",
        ),
        (
            {"name": "ddim", "use_karras_sigmas": True},
            "sampler.use_karras_sigmas: found true, expected false or null for the sampler ddim; "
            "true is for dpm++1, dpm++1-sde, dpm++2m, dpm++2m-sde, euler",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_a_sampler_does_not_have_is_refused(write: Write, sampler: dict[str, Any], problem: str) -> None:
    assert problems(write(sampler=sampler | {"steps": 20})) == [problem]


def test_what_a_sampler_has_overrides_the_model(write: Write) -> None:
    sampler = load_plan(write(sampler={"name": "dpm++2m", "steps": 20, "use_karras_sigmas": True, "clip_sample": False})).plan.sampler
    assert sampler.overrides == {"use_karras_sigmas": True, "clip_sample": False}
