"""The registry, and the rows of the table it returns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.errors import UsageError
from engines.samplers import SAMPLERS, NoiseSchedule, compile_sampler
from engines.samplers.alphas import alpha_bar


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_compiles_to_float64_arrays_of_one_length_under_its_name(name: str) -> None:
    table = compile_sampler(name, 6, 1.0, NoiseSchedule())
    assert (table.name, table.steps, table.init_sigma) == (name, 6, 1.0)
    shapes = {
        "timestep": (6,),
        "alpha_bar": (6,),
        "x_coeff": (6,),
        "out_coeff": (6,),
        "sigma": (6,),
        "input_scale": (6,),
        "prediction_coeffs": (6, 2),
        "epsilon_coeffs": (6, 2),
        "history_coeffs": (6, 1),
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


@pytest.mark.parametrize(("name", "nearest"), [("dddim", "ddim"), ("DDIM", "ddim"), ("DDPM", "ddpm"), ("ddpm2", "ddpm")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf'(?s)unknown sampler.*ddim or ddpm.*did you mean "{nearest}"'):
        compile_sampler(name, 10, 0.0, NoiseSchedule())


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_refuses_an_eta_that_is_no_share(eta: float) -> None:
    with pytest.raises(UsageError, match=rf"(?s)eta = {eta}.*0 to 1"):
        compile_sampler("ddim", 10, eta, NoiseSchedule())


def test_refuses_alphas_of_another_length() -> None:
    with pytest.raises(UsageError, match=r"(?s)\(999,\).*\(1000,\)"):
        compile_sampler("ddim", 10, 0.0, NoiseSchedule(), np.full(999, 0.5))
