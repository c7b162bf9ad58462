"""The section about an ONNX graph: what belongs together, and where a wrong key is found."""

from __future__ import annotations

from typing import Any

import pytest

from ptqd_export.plan import load_plan
from tests.ptqd_export.plan.plans import Write, problems

SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0}


def graph(write: Write, **section: Any) -> list[str]:
    return problems(write(model={"onnx": "unet.onnx", "graph": section}))


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "expected either scheduler or schedule"),
        ({"scheduler": "s.json", "schedule": SIGMAS}, "expected either scheduler or schedule"),
        ({"schedule": SIGMAS, "predicts": "flow"}, "expected no sigmas for a flow: its levels are shares of noise"),
        ({"schedule": {}, "preconditioning": "edm"}, "expected a schedule with sigma_min and sigma_max together with preconditioning"),
        (
            {"schedule": SIGMAS, "preconditioning": "edm", "predicts": "epsilon"},
            'expected predicts "sample" or null together with preconditioning, which turns the output into the clean sample',
        ),
        ({"schedule": {}, "predicts": "flow", "state_form": "added"}, 'expected no state_form "added" for a flow'),
    ],
)
def test_what_does_not_belong_together_is_refused(write: Write, section: dict[str, Any], problem: str) -> None:
    (found,) = graph(write, **section)
    assert found.startswith("model.graph: found ")
    assert found.endswith(problem)


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ({"sigma_min": 1.0}, "both sigma_min and sigma_max, or neither"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "a sigma_max above sigma_min"),
        ({**SIGMAS, "trained_betas": [0.1]}, "only one of trained_betas, alphas_cumprod and sigmas"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 3}, "as many values as num_train_timesteps, 3"),
        ({"alphas_cumprod": [0.5, 0.9], "num_train_timesteps": 2}, "alphas_cumprod that fall"),
    ],
)
def test_numbers_of_two_kinds_of_noise_are_refused(write: Write, schedule: dict[str, Any], problem: str) -> None:
    (found,) = graph(write, schedule=schedule)
    assert found.startswith("model.graph.schedule: found ")
    assert found.endswith(f"expected {problem}")


def test_a_wrong_key_of_an_input_is_named_with_the_input(write: Write) -> None:
    assert graph(write, schedule={}, inputs={"y": {"label": 5}}) == ['model.graph.inputs.y.label: unknown key; did you mean "labels"?']
    assert graph(write, schedule={}, inputs={"y": {"labels": 0}}) == ["model.graph.inputs.y.labels: found 0, expected more than 0"]


def test_a_graph_has_no_prompts(write: Write) -> None:
    (found,) = problems(write(model={"onnx": "unet.onnx", "graph": {"schedule": {}}, "prompts": ["a fox"]}))
    assert found.endswith('expected a "path" together with "prompts" or "lora"')


def test_lists_may_be_long(write: Write) -> None:
    betas = [0.1, 0.2, 0.3]
    plan = load_plan(write(model={"onnx": "u.onnx", "graph": {"schedule": {"trained_betas": betas, "num_train_timesteps": 3}}})).plan
    assert plan.model.graph is not None
    assert plan.model.graph.schedule is not None
    assert plan.model.graph.schedule.trained_betas == tuple(betas)
