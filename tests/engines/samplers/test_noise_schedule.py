"""Reading a diffusers scheduler configuration."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from pydantic import ValidationError

from engines.errors import UsageError
from engines.samplers.noise_schedule import NoiseSchedule

STABLE_DIFFUSION: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_defaults_are_those_of_diffusers(scheduler: Any) -> None:
    theirs = {name: parameter.default for name, parameter in inspect.signature(scheduler.__init__).parameters.items()}
    ours = NoiseSchedule().model_dump()
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 12
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_reads_what_matters_and_leaves_the_rest_aside() -> None:
    assert NoiseSchedule.from_scheduler_config(STABLE_DIFFUSION) == NoiseSchedule(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_reads_every_configuration_that_diffusers_writes(scheduler: Any) -> None:
    written = dict(scheduler(beta_end=0.015, prediction_type="v_prediction", clip_sample_range=2.0).config)
    expected = NoiseSchedule(beta_end=0.015, prediction_type="v_prediction", clip_sample_range=2.0)
    assert NoiseSchedule.from_scheduler_config(written) == expected


def test_clip_is_the_range_only_where_clipping_is_on() -> None:
    assert NoiseSchedule(clip_sample_range=2.5).clip == 2.5
    assert NoiseSchedule(clip_sample=False, clip_sample_range=2.5).clip is None


def test_is_immutable_and_rejects_a_misspelt_field() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        NoiseSchedule().beta_end = 0.5
    with pytest.raises(ValidationError, match="beta_ende"):
        NoiseSchedule(beta_ende=0.5)  # type: ignore[call-arg]  # the mistake that is tested


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholding": True}, "thresholding = true.*set thresholding to false and clip_sample to true"),
        ({"variance_type": "learned"}, 'variance_type = learned\n.*set variance_type to "fixed_small"'),
        ({"variance_type": "learned_range"}, 'variance_type = learned_range\n.*set variance_type to "fixed_large"'),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "not trained on a schedule of betas.*FlowMatchEuler"),
        ({"beta_schedule": "laplace"}, "unusable beta_schedule.*'laplace'.*'linear', 'scaled_linear'"),
        ({"prediction_type": "flow_prediction"}, "unusable prediction_type.*'flow_prediction'"),
        ({"beta_start": 0.0}, "unusable beta_start.*0.0.*greater than 0"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, "unusable trained_betas.1.*1.5"),
        ({"trained_betas": [0.1, 0.2]}, "found: +2 betas.*num_train_timesteps = 1000"),
    ],
)
def test_refuses_what_no_table_can_hold(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        NoiseSchedule.from_scheduler_config(config)
