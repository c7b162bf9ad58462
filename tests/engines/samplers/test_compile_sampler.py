"""The registry, and the rows of the table it returns."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from engines.errors import UsageError
from engines.samplers import SAMPLERS, NoiseSchedule, compile_sampler
from engines.samplers.levels.alphas import alpha_bar

HISTORY = {
    "ddim": 1, "ddpm": 1, "plms": 5, "dpm++2m": 2, "dpm++2m-sde": 2, "unipc2": 3, "unipc3": 4, "deis2": 2, "deis3": 3, "heun": 2, "lcm": 1,
    "consistency": 1,
}  # fmt: skip
"""Predictions that a step keeps, its own included; a sampler that clips keeps its own."""


def _schedule(name: str) -> NoiseSchedule:
    return NoiseSchedule(prediction_type=SAMPLERS[name].predictions[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_compiles_to_float64_arrays_of_one_length_under_its_name(name: str) -> None:
    table = compile_sampler(name, 6, SAMPLERS[name].eta, _schedule(name))
    S = SAMPLERS[name].rows(6)
    assert (table.name, table.steps, S) == (name, S, {"plms": 7, "heun": 11}.get(name, 6))
    shapes = {
        "timestep": (S,),
        "alpha_bar": (S,),
        "x_coeff": (S,),
        "out_coeff": (S,),
        "sigma": (S,),
        "input_scale": (S,),
        "prediction_coeffs": (S, 2),
        "epsilon_coeffs": (S, 2),
        "history_coeffs": (S, HISTORY.get(name, 0)),
    }
    assert {field: getattr(table, field).shape for field in shapes} == shapes
    assert {getattr(table, field).dtype for field in shapes} == {np.dtype(np.float64)}


def test_a_row_has_the_values_of_the_arrays_as_plain_floats() -> None:
    table = compile_sampler("ddim", 4, 0.5, NoiseSchedule(prediction_type="v_prediction"))
    row = table.step(2)
    for field in ("timestep", "alpha_bar", "x_coeff", "out_coeff", "sigma", "input_scale"):
        assert getattr(row, field) == getattr(table, field)[2]
        assert type(getattr(row, field)) is float
    for field in ("prediction_coeffs", "epsilon_coeffs", "history_coeffs"):
        assert list(getattr(row, field)) == getattr(table, field)[2].tolist()
        assert {type(value) for value in getattr(row, field)} == {float}
    assert row.clip == table.clip == 1.0


def test_given_alphas_replace_those_of_the_schedule() -> None:
    schedule = NoiseSchedule()
    alphas = alpha_bar(schedule) ** 2
    table = compile_sampler("ddim", 5, 0.0, schedule, alphas)
    np.testing.assert_array_equal(table.alpha_bar, alphas[[800, 600, 400, 200, 0]])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("dddim", "ddim"), ("DDIM", "ddim"), ("DDPM", "ddpm"), ("ddpm2", "ddpm"), ("euler_a", "euler"), ("dpm++2m-sdee", "dpm++2m-sde")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    message = f'did you mean "{nearest}"?'
    with pytest.raises(UsageError, match=rf"(?s)The sampler is unknown\..*ddim or ddpm or plms.*{re.escape(message)}"):
        compile_sampler(name, 10, 0.0, NoiseSchedule())


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_refuses_an_eta_that_is_no_share(eta: float) -> None:
    with pytest.raises(UsageError, match=rf"(?s)eta = {eta}.*0 to 1"):
        compile_sampler("ddim", 10, eta, NoiseSchedule())


def test_refuses_alphas_of_another_length() -> None:
    with pytest.raises(UsageError, match=r"(?s)\(999,\).*\(1000,\)"):
        compile_sampler("ddim", 10, 0.0, NoiseSchedule(), np.full(999, 0.5))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ddim", "tcd")])
def test_only_ddim_and_tcd_have_a_share_of_noise_to_choose(name: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)eta = 0\.5.*expected: eta = [01]\n.*sampler ddim"):
        compile_sampler(name, 10, 0.5, _schedule(name))


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_added_where_eta_says_so(name: str) -> None:
    sigma = compile_sampler(name, 10, SAMPLERS[name].eta, _schedule(name)).sigma
    assert sigma.any() == (SAMPLERS[name].eta > 0)
    assert sigma[-1] == 0, "the last step yields the sample itself"


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not SAMPLERS[name].clips])
def test_a_schedule_that_clips_says_nothing_to_samplers_that_do_not(name: str) -> None:
    assert _schedule(name).clip == 1.0
    assert compile_sampler(name, 10, SAMPLERS[name].eta, _schedule(name)).clip is None


@pytest.mark.parametrize(
    ("name", "prediction_type", "mend"),
    [
        ("plms", "sample", "ddim or ddpm or dpm"),
        ("ddim", "flow", r"sampler dpm\+\+1 or .* or flow-euler or scm$"),
        ("flow-euler", "epsilon", "sampler ddim or "),
    ],
)
def test_refuses_a_model_of_another_prediction(name: str, prediction_type: Any, mend: str) -> None:
    with pytest.raises(
        UsageError, match=rf"(?s){name} does not support the model's prediction type\..*prediction_type = {prediction_type}\n.*{mend}"
    ):
        compile_sampler(name, 10, SAMPLERS[name].eta, NoiseSchedule(prediction_type=prediction_type))


@pytest.mark.parametrize("name", SAMPLERS)
def test_coefficients_of_the_clean_sample_and_the_noise_are_those_of_the_state_that_is_walked(name: str) -> None:
    """With `x = alpha x0 + sigma eps` in the sampler's own convention, whatever the model predicts."""
    x0, eps = 0.4, 1.1
    for prediction_type in SAMPLERS[name].predictions:
        table = compile_sampler(name, 6, SAMPLERS[name].eta, NoiseSchedule(prediction_type=prediction_type, clip_sample=False))
        for row in map(table.step, range(table.steps)):
            a = row.alpha_bar
            out = {
                "epsilon": eps, "v_prediction": math.sqrt(a) * eps - math.sqrt(1 - a) * x0, "sample": x0, "flow": eps - x0,
            }[prediction_type]  # fmt: skip
            share = math.sqrt(1 - a) / (math.sqrt(a) + math.sqrt(1 - a))
            flow = prediction_type == "flow"
            x = (1 - share) * x0 + share * eps if flow else (math.sqrt(a) * x0 + math.sqrt(1 - a) * eps) / row.input_scale
            (P, Q), (R, T) = row.prediction_coeffs, row.epsilon_coeffs
            assert R * x + T * out == pytest.approx(eps, rel=1e-9)
            assert P * x + Q * out == pytest.approx({"plms": out, "deis2": eps, "deis3": eps}.get(name, x0), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "chosen", "found"),
    [
        ("euler", {"timesteps": (900.0, 500.0)}, "2 timesteps.*expected: 3"),
        ("euler", {"sigmas": (9.0,)}, "1 sigmas.*expected: 3"),
        ("ddpm", {"timesteps": (1000.0, 500.0, 0.0)}, "timestep 1000.*at most 999"),
    ],
)
def test_refuses_levels_that_do_not_fit_the_chain(name: str, chosen: Any, found: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s){found}"):
        compile_sampler(name, 3, SAMPLERS[name].eta, NoiseSchedule(), **chosen)
