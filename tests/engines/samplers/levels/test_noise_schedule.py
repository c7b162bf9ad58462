"""Reading a diffusers scheduler configuration."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from pydantic import ValidationError

from engines.errors import UsageError
from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import NoiseSchedule

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

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


BETAS = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear"}

CLASSES = [
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    DDIMParallelScheduler,
    DDPMParallelScheduler,
    DEISMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
    SASolverScheduler,
    LMSDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
]


@pytest.mark.parametrize("scheduler", CLASSES)
def test_a_file_that_says_nothing_means_what_its_class_does(scheduler: Any) -> None:
    silent = NoiseSchedule.from_scheduler_config({"_class_name": scheduler.__name__})
    assert silent == NoiseSchedule.from_scheduler_config({"_class_name": scheduler.__name__, **scheduler().config})
    theirs = {name: parameter.default for name, parameter in inspect.signature(scheduler.__init__).parameters.items()}
    shared = [name for name in silent.model_fields_set & theirs.keys() if theirs[name] is not None]
    assert {name: getattr(silent, name) for name in shared} == {name: theirs[name] for name in shared}
    assert silent.clip_sample == theirs.get("clip_sample", False)
    assert silent.timestep_spacing == theirs.get("timestep_spacing", "leading")
    assert silent.prediction_type == theirs.get("prediction_type", "flow")


@pytest.mark.parametrize("name", [name for name in dir(diffusers) if name.endswith("Scheduler")])
def test_the_betas_are_those_of_the_scheduler_or_it_is_refused(name: str) -> None:
    """A default configuration of every class of diffusers, as it writes it and with nothing but its class."""
    try:
        scheduler = getattr(diffusers, name)()
    except (ImportError, TypeError, ValueError):
        pytest.skip("needs other packages or arguments")
    for config in ({"_class_name": name, **scheduler.config}, {"_class_name": name}):
        try:
            schedule = NoiseSchedule.from_scheduler_config(config)
        except UsageError:
            assert scheduler.__class__ not in CLASSES
            continue
        if schedule.prediction_type != "flow":
            np.testing.assert_allclose(alpha_bar(schedule), scheduler.alphas_cumprod, rtol=1e-3)


def test_the_classes_differ_where_they_should() -> None:
    pndm, euler, flow = (
        NoiseSchedule.from_scheduler_config({"_class_name": name})
        for name in ("PNDMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
    )
    assert (pndm.clip_sample, pndm.set_alpha_to_one, pndm.skip_prk_steps, pndm.timestep_spacing) == (False, False, False, "leading")
    assert (euler.clip_sample, euler.timestep_spacing, euler.final_sigmas_type) == (False, "linspace", "zero")
    assert (flow.prediction_type, flow.shift) == ("flow", 1.0)


def test_a_class_that_is_unknown_does_not_clip_unless_it_says_so() -> None:
    config = {"_class_name": "MyScheduler", **BETAS}
    assert NoiseSchedule.from_scheduler_config(config).clip is None
    assert NoiseSchedule.from_scheduler_config(config | {"clip_sample": True}).clip == 1.0


def test_no_bound_of_the_levels_is_written_as_json_can_hold_it() -> None:
    schedule = NoiseSchedule.from_scheduler_config({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": float("-inf")})
    assert schedule.lambda_min_clipped is None
    assert NoiseSchedule.model_validate_json(schedule.model_dump_json()) == schedule
    assert NoiseSchedule(lambda_min_clipped=-5.1).lambda_min_clipped == -5.1


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
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "trained with an unsupported noise schedule.*FlowMatchHeun.*FlowMatchEuler"),
        ({"_class_name": "EDMEulerScheduler"}, "trained with an unsupported noise schedule.*EDMEuler"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01}, "unsupported noise schedule.*ScoreSdeVe.*states no betas"),
        ({"_class_name": "MyScheduler", "beta_start": 0.001}, "unsupported noise schedule.*MyScheduler.*states no betas"),
        ({"_class_name": "CogVideoXDDIMScheduler", **BETAS}, "unsupported noise schedule.*snr_shift_scale"),
        ({"predict_epsilon": False}, 'expected: prediction_type = "sample"'),
        ({"beta_schedule": "cosine"}, "invalid beta_schedule.*'cosine'.*'linear', 'scaled_linear'"),
        ({"interpolation_type": "log_linear"}, 'interpolation_type = "log_linear".*interpolation_type = "linear"'),
        ({"timestep_type": "continuous"}, 'timestep_type = "continuous".*set timestep_type to "discrete"'),
        ({"sigma_max": 700.0}, "sigma_max = 700.*expected: sigma_max = null"),
        ({"use_beta_sigmas": True, "use_karras_sigmas": True}, "have one spacing.*use_karras_sigmas and use_beta_sigmas"),
        ({"use_lu_lambdas": True}, "use_lu_lambdas = true"),
        ({"use_flow_sigmas": True}, "a flow in part.*use_flow_sigmas = true"),
        ({"use_dynamic_shifting": True}, r"use_dynamic_shifting = true.*shift to exp\(mu\)"),
        ({"invert_sigmas": True}, "invert_sigmas = true"),
        ({"shift_terminal": 0.1}, "shift_terminal = 0.1"),
        ({"stochastic_sampling": True}, "stochastic_sampling = true"),
        ({"prediction_type": "flow_prediction"}, "a flow in part.*use_flow_sigmas = false, prediction_type = flow_prediction"),
        ({"beta_start": 0.0}, "invalid beta_start.*0.0.*greater than 0"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, "invalid trained_betas.1.*1.5"),
        ({"trained_betas": [0.1, 0.2]}, "found: +2 betas.*num_train_timesteps = 1000"),
    ],
)
def test_refuses_what_no_table_can_hold(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        NoiseSchedule.from_scheduler_config(config)


def test_a_flow_of_dpm_solver_is_a_flow_with_its_shift() -> None:
    sana = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    schedule = NoiseSchedule.from_scheduler_config(sana)
    assert (schedule.prediction_type, schedule.shift) == ("flow", 3.0)


@pytest.mark.parametrize("tokens", [64, 1024, 4300, 4301, 16384])
@pytest.mark.parametrize("steps", [1, 4, 50, 200])
def test_shift_of_flux2_follows_from_tokens_and_steps(tokens: int, steps: int) -> None:
    schedule = NoiseSchedule(prediction_type="flow", mu_tokens=tokens).for_steps(steps)
    assert schedule.mu == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)
