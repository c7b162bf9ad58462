"""The section `sampler`: the registered ones, and what each of them has."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engines.samplers import SAMPLERS, NoiseSchedule
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


@pytest.mark.parametrize(
    ("name", "eta"), [("ddim", 0.0), ("ddpm", 1.0), ("dpm++2m", 0.0), ("dpm++2m-sde", 1.0), ("euler-ancestral", 1.0), ("tcd", 0.3)]
)
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
            "sampler.clip_sample: found true, expected false or null for the sampler euler; true is for ddim, ddpm, heun, lcm, consistency",
        ),
        (
            {"name": "ddim", "use_karras_sigmas": True},
            "sampler.use_karras_sigmas: found true, expected false or null for the sampler ddim; "
            "true is for dpm++1, dpm++1-sde, dpm++2m, dpm++2m-sde, unipc2, unipc3, euler, heun, flow-euler",
        ),
        (
            {"name": "euler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "sampler.use_beta_sigmas: found true, expected false or null beside use_karras_sigmas",
        ),
        (
            {"name": "ddim", "steps": 1, "timesteps": [900]},
            "sampler.timesteps: found [900], expected null for the sampler ddim; "
            "timesteps are for ddpm, dpm++1, dpm++1-sde, dpm++2m, dpm++2m-sde, euler, heun, lcm, tcd",
        ),
        ({"name": "lcm", "timesteps": [999, 499]}, "sampler.timesteps: found [999, 499], expected as many as sampler.steps, 20"),
        ({"name": "lcm", "steps": 2, "timesteps": [499, 999]}, "sampler.timesteps: found [499, 999], expected numbers that fall"),
        (
            {"name": "lcm", "steps": 2, "timesteps": [999, 499.5]},
            "sampler.timesteps: found [999, 499.5], expected whole numbers for the sampler lcm",
        ),
        (
            {"name": "euler", "steps": 1, "timesteps": [999], "sigmas": [9]},
            "sampler.sigmas: found [9], expected null beside timesteps",
        ),
        (
            {"name": "euler", "steps": 1, "timesteps": [999], "use_beta_sigmas": True},
            "sampler.timesteps: found [999], expected null beside use_beta_sigmas",
        ),
        (
            {"name": "flow-euler", "steps": 2, "sigmas": [1.5, 0.5]},
            "sampler.sigmas: found [1.5, 0.5], expected shares of noise up to 1 for the sampler flow-euler",
        ),
        ({"name": "euler", "steps": 1, "sigmas": [0]}, "sampler.sigmas[0]: found 0, expected more than 0.0"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_a_sampler_does_not_have_is_refused(write: Write, sampler: dict[str, Any], problem: str) -> None:
    assert problems(write(sampler={"steps": 20} | sampler)) == [problem]


def test_what_a_sampler_has_overrides_the_model(write: Write) -> None:
    sampler = load_plan(write(sampler={"name": "dpm++2m", "steps": 20, "use_karras_sigmas": True, "clip_sample": False})).plan.sampler
    assert sampler.overrides == {
        "use_karras_sigmas": True, "use_exponential_sigmas": False, "use_beta_sigmas": False, "clip_sample": False,
    }  # fmt: skip


def test_what_a_plan_chooses_to_visit_is_recorded(write: Write) -> None:
    sampler = load_plan(write(sampler={"name": "lcm", "steps": 2, "timesteps": [999, 259]})).plan.sampler
    assert (sampler.record.timesteps, sampler.record.sigmas) == ((999.0, 259.0), None)
    assert sampler.record.table(NoiseSchedule()).timestep.tolist() == [999, 259]
