"""The schedule contract: a literal file, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from engines.chain.schedule import CorrectionRecord, Schedule


def correction(gain: float) -> dict[str, Any]:
    return {
        "gain": [gain],
        "offset": [0.25],
        "state_gain": [0.125],
        "sigma_corrected": 0.5,
        "residual_variance": 0.01,
        "unabsorbed_variance": 0.0,
    }


SHIFT = {"timestep": 512.25, "input_scale": 0.5, "x_coeff": 0.625, "out_coeff": -0.75, "prediction_coeffs": [1.0, -1.75]}


def step(number: int, precision: str) -> dict[str, Any]:
    return {
        "step": number,
        "timestep": 500.5,
        "precision": precision,
        "x_coeff": 1.25,
        "out_coeff": -0.5,
        "prediction_coeffs": [2.0, -1.5],
        "history_coeffs": [0.1, 0.2],
        "input_scale": 1.0,
        "sigma": 0.75,
        "clip": None,
        "corrections": {"fp32": correction(1.0), "w8a8": correction(0.875)},
        "shifted": None if number == 0 else SHIFT,
        "mixed": correction(0.75) if number == 0 else None,
        "reuse": None,
        "extrapolation": None,
    }


JUDGED = {
    "chain": None,
    "correction": {"mode": "ptqd", "parts": ["gain", "offset"], "variance": "none"},
    "samples": 16,
    "error_db": -31.5,
    "behind_db": 0.25,
    "standard_error_db": 0.125,
    "chosen": False,
}


SCHEDULE: dict[str, Any] = {
    "schema_version": 3,
    "sampler": {"name": "ddim", "steps": 2, "eta": 1.0, "guidance": 1.5, "timesteps": None, "sigmas": None},
    "correction": {"mode": "signed", "parts": ["offset"], "variance": "shift"},
    "policy": "snr",
    "init_sigma": 1.0,
    "steps": [step(0, "w8a8"), step(1, "fp32")],
    "judged": [JUDGED],
}


def read(content: object) -> Schedule:
    return Schedule.model_validate_json(json.dumps(content))


def test_file_reads_and_writes_back_as_it_is() -> None:
    schedule = read(SCHEDULE)
    assert schedule.precisions == ("fp32", "w8a8")
    assert [one.precision for one in schedule.steps] == ["w8a8", "fp32"]
    assert schedule.steps[0].corrections["w8a8"].gain == (0.875,)
    assert schedule.steps[0].prediction_coeffs == (2.0, -1.5)
    assert json.loads(schedule.model_dump_json()) == SCHEDULE


def test_file_without_chosen_levels_takes_those_of_its_noise_schedule() -> None:
    sampler = read(SCHEDULE | {"sampler": {"name": "ddim", "steps": 2, "eta": 1.0, "guidance": 1.5}}).sampler
    assert (sampler.timesteps, sampler.sigmas) == (None, None)


def test_file_of_version_1_has_neither_evidence_nor_corrections_of_a_mixed_chain() -> None:
    steps = [{key: value for key, value in one.items() if key != "mixed"} for one in SCHEDULE["steps"]]
    schedule = read({**{key: value for key, value in SCHEDULE.items() if key != "judged"}, "schema_version": 1, "steps": steps})
    assert schedule.judged == ()
    assert [one.chosen_correction for one in schedule.steps] == [one.corrections[one.precision] for one in schedule.steps]


@pytest.mark.parametrize(
    ("mode", "parts", "variance", "label"),
    [
        ("none", ["gain", "offset"], "none", "none"),
        ("none", ["gain", "offset"], "schedule", "none + variance"),
        ("joint", ["gain", "offset"], "shift", "joint + shift"),
        ("signed", ["offset"], "none", "offset"),
        ("signed", [], "none", "none"),
    ],
)
def test_correction_has_a_short_name(mode: str, parts: list[str], variance: str, label: str) -> None:
    assert CorrectionRecord.model_validate_json(json.dumps({"mode": mode, "parts": parts, "variance": variance})).label == label


def test_a_corrected_chain_takes_the_shifted_step() -> None:
    plain, shifted = read(SCHEDULE).steps
    assert plain.corrected is plain
    taken = shifted.corrected
    assert (taken.timestep, taken.input_scale, taken.x_coeff, taken.out_coeff) == (512.25, 0.5, 0.625, -0.75)
    assert (taken.prediction_coeffs, taken.sigma, taken.corrections) == ((1.0, -1.75), shifted.sigma, shifted.corrections)


def test_a_schedule_is_shifted_where_a_step_is() -> None:
    assert read(SCHEDULE).is_shifted
    assert not read(SCHEDULE | {"steps": [step(0, "w8a8")]}).is_shifted


@pytest.mark.parametrize(("precision", "holds"), [("w8a8", False), ("fp32", True), ("w4a8", True)])
def test_corrections_of_an_accumulated_error_hold_for_the_mixture_and_for_precisions_outside_it(precision: str, holds: bool) -> None:
    steps = [{**step(number, name), "shifted": None} for number, name in enumerate(("w8a8", "fp32"))]
    for one in steps:
        one["corrections"] = {"fp32": correction(1.0) | {"residual_variance": 0.0}, "w8a8": correction(0.875), "w4a8": correction(0.75)}
    record = {"mode": "joint", "parts": ["gain", "offset", "chain"], "variance": "none"}
    assert read(SCHEDULE | {"steps": steps, "correction": record}).corrects(precision) == holds
    assert read(SCHEDULE | {"steps": steps, "correction": record | {"parts": ["gain"]}}).corrects(precision)


def test_coefficients_keep_every_bit() -> None:
    content = copy.deepcopy(SCHEDULE)
    content["steps"][0]["x_coeff"] = 1.5963931094360255
    written = read(content).model_dump_json()
    assert Schedule.model_validate_json(written).steps[0].x_coeff == 1.5963931094360255


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


OF_W8A8 = ("steps", 0, "corrections", "w8a8")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("steps", 0, "precision", value="w4a4"), "step 0 uses w4a4, which has no correction"),
        (_set("steps", 1, "step", value=2), "not numbered 0, 1, 2"),
        (_set("steps", value=[step(1, "fp32"), step(0, "fp32")]), "not numbered 0, 1, 2"),
        (_set("steps", value=[]), "at least 1 item"),
        (_set("steps", 0, "corrections", value={"w8a8": correction(1.0)}), "corrections for the same precisions"),
        (_set(*OF_W8A8, "offset", value=[0.0, 0.0]), "gain, offset and state_gain have 1 channels, 2 and 1"),
        (_set(*OF_W8A8, value=correction(1.0) | {"gain": [], "offset": [], "state_gain": []}), "have 0 channels"),
        (_set(*OF_W8A8, "gain", value=[float("nan")]), "finite"),
        (_set(*OF_W8A8, "sigma_corrected", value=-0.1), "greater than or equal to 0"),
        (_set(*OF_W8A8, "residual_variance", value=float("inf")), "finite"),
        (_set(*OF_W8A8, "unabsorbed_variance", value=None), "valid number"),
        (_set("steps", 0, "x_coeff", value=float("inf")), "finite"),
        (_set("steps", 0, "timestep", value=-1.0), "greater than or equal to 0"),
        (_set("steps", 0, "clip", value=0.0), "greater than 0"),
        (_set("steps", 0, "prediction_coeffs", value=[1.0]), "required"),
        (_set("steps", 0, "surprise", value=1), "not permitted"),
        (_set("init_sigma", value=0.0), "greater than 0"),
        (_set("steps", 1, "shifted", value=SHIFT | {"timestep": -1.0}), "greater than or equal to 0"),
        (_set("steps", 1, "shifted", value=SHIFT | {"sigma": 0.5}), "not permitted"),
        (_set("correction", "parts", value=["gain", "scale"]), "'gain', 'offset' or 'chain'"),
        (_set("correction", "mode", value="best"), "'auto', 'none', 'ptqd', 'signed', 'bounded', 'joint' or 'mmse'"),
        (_set("steps", 0, "sigma", value="0.75"), "valid number"),
        (_set("sampler", "steps", value=2.0), "valid integer"),
        (_set("schema_version", value=4), "should be 1, 2 or 3"),
    ],
)
def test_file_that_breaks_the_contract_is_refused(change: Callable[[Any], None], complaint: str) -> None:
    content = copy.deepcopy(SCHEDULE)
    change(content)
    with pytest.raises(ValidationError) as caught:
        read(content)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("key", ["sampler", "correction", "policy", "init_sigma", "steps"])
def test_nothing_may_be_left_out(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){key}.*Field required"):
        read({name: value for name, value in SCHEDULE.items() if name != key})


def test_a_step_without_its_corrections_is_no_step() -> None:
    content = copy.deepcopy(SCHEDULE)
    del content["steps"][0]["corrections"]
    with pytest.raises(ValidationError, match=r"(?s)corrections.*Field required"):
        read(content)


def reusing(number: int, cut: str) -> dict[str, Any]:
    """A step of w8a8 that reuses features."""
    made = step(number, "w8a8")
    return {**made, "reuse": cut, "corrections": {**made["corrections"], f"w8a8+{cut}": correction(0.5)}}


def test_step_that_reuses_features_has_a_correction_of_its_own() -> None:
    schedule = read({**SCHEDULE, "steps": [step(0, "w8a8"), reusing(1, "skip_3")]})
    assert schedule.precisions == ("fp32", "w8a8")
    assert schedule.networks == ("fp32", "w8a8", "w8a8+skip_3")
    assert schedule.cut == "skip_3"
    assert schedule.steps[1].network == "w8a8+skip_3"
    assert schedule.steps[1].chosen_correction.gain == (0.5,)
    assert read(SCHEDULE).cut is None


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([reusing(0, "skip_3"), step(1, "w8a8")], "step 0 reuses the features of skip_3, but no earlier step has computed them"),
        ([step(0, "w8a8"), reusing(1, "skip_3"), reusing(2, "skip_1")], "different cuts, skip_1, skip_3"),
        ([step(0, "w8a8"), {**step(1, "w8a8"), "reuse": "skip_3"}], r"step 1 uses w8a8\+skip_3, which has no correction"),
    ],
)
def test_features_that_nothing_kept_are_refused(steps: list[Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        read({**SCHEDULE, "steps": steps})


def test_only_a_step_that_reuses_features_extrapolates_them() -> None:
    content = copy.deepcopy(SCHEDULE)
    content["steps"][1] |= {
        "extrapolation": 0.5,
        "reuse": "skip_1",
        "corrections": {**step(1, "fp32")["corrections"], "fp32+skip_1": correction(1.0)},
    }
    assert read(content).extrapolates
    content["steps"][1]["reuse"] = None
    with pytest.raises(ValueError, match="step 1 extrapolates features, but reuses none"):
        read(content)
