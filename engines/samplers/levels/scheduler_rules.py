"""How the scheduler classes of diffusers mean their settings, and which settings no sampler here supports."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from engines.errors import UsageError

_NO_CLIP = {"clip_sample": False}
_LINSPACE = _NO_CLIP | {"timestep_spacing": "linspace"}
_K_DIFFUSION = _LINSPACE | {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED = _NO_CLIP | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": _NO_CLIP | {"set_alpha_to_one": False, "skip_prk_steps": False},
    "DPMSolverMultistepScheduler": _LINSPACE,
    "EulerDiscreteScheduler": _LINSPACE,
    "EulerAncestralDiscreteScheduler": _LINSPACE,
    "DDIMParallelScheduler": {},
    "DDPMParallelScheduler": {},
    "DEISMultistepScheduler": _LINSPACE | {"solver_type": "logrho"},
    "DPMSolverSinglestepScheduler": _NO_CLIP,
    "UniPCMultistepScheduler": _LINSPACE | {"solver_type": "bh2"},
    "SASolverScheduler": _LINSPACE,
    "LMSDiscreteScheduler": _LINSPACE,
    "HeunDiscreteScheduler": _K_DIFFUSION,
    "KDPM2DiscreteScheduler": _K_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION,
    "DPMSolverSDEScheduler": _K_DIFFUSION,
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "FlowMatchEulerDiscreteScheduler": _NO_CLIP | {"prediction_type": "flow"},
    "SCMScheduler": _NO_CLIP | {"prediction_type": "flow"},
}
"""Default values of each scheduler class where they differ from those of `NoiseSchedule`."""

_OTHER_MEANING: Mapping[str, tuple[str, ...]] = {
    "DPMSolverSinglestepScheduler": ("lower_order_final",),
}
"""Settings that mean something else to a class: here, they are those of DPMSolverMultistepScheduler."""

_FLOW_FORMS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Classes that have a form for flows, with `use_flow_sigmas` and `flow_prediction`."""

_OTHER_NAMES = {"original_sample": "sample", "flow_prediction": "flow", "trigflow": "flow"}
"""Names that classes give to a prediction type."""

_LEARNED_VARIANCE = {"learned": "fixed_small", "learned_range": "fixed_large"}
_UNSUPPORTED: Mapping[str, str] = {
    "CogVideoXDDIMScheduler": "betas rescaled by snr_shift_scale, which are not supported",
    "CogVideoXDPMScheduler": "betas rescaled by snr_shift_scale, which are not supported",
}
"""Scheduler classes that state betas and still need more than a table on them, and why."""

_BETAS = ("beta_start", "beta_end", "beta_schedule")

_PLAIN_VALUES: Mapping[str, tuple[object, ...]] = {
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_lu_lambdas": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
}
"""Settings that can change a chain's noise levels or timesteps in ways not supported here, each with the values that change nothing."""

_FLOW_SHIFTS: Mapping[str, tuple[object, ...]] = {"use_dynamic_shifting": (False, None), "shift_terminal": (None,)}
"""The same for all but flows. A dynamic shift also needs to know how many tokens a sample has."""

_DYNAMIC_SHIFT: Mapping[str, float] = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
"""What `FlowMatchEulerDiscreteScheduler` and its pipelines assume where the configuration is silent."""

_FEW_STEPS, _MANY_STEPS = 10, 200
_MU_OF_TOKENS = (8.73809524e-05, 1.89833333), (0.00016927, 0.45666666)
_MANY_TOKENS = 4300
"""FLUX.2's shift `mu`, as its pipelines have it: slope and constant over tokens at few and at many steps, and the number of tokens above
which the second holds for any number of steps."""

_MEND = {"use_dynamic_shifting": "set use_dynamic_shifting to false and shift to exp(mu) for your image size"}


def settings_of(config: Mapping[str, Any], fields: Collection[str], switches: Collection[str]) -> dict[str, Any]:
    """Return the settings of a configuration with the defaults of its class.

    Args:
        config: content of the file.
        fields: names of the settings.
        switches: those that are on or off; null is off.
    """
    scheduler = _class(config)
    given = {key: config[key] for key in fields if key in config and key not in _OTHER_MEANING.get(scheduler, ())}
    given |= {key: False for key in switches if key in given and given[key] is None}
    if given.get("prediction_type") in _OTHER_NAMES:
        given["prediction_type"] = _OTHER_NAMES[given["prediction_type"]]
    if config.get("use_flow_sigmas"):
        given["shift"] = config.get("flow_shift")
    return {**_CLASS_DEFAULTS.get(scheduler, _NO_CLIP), **{key: value for key, value in given.items() if value is not None}}


def dynamic_mu(config: Mapping[str, Any], tokens: int | None) -> float | None:
    """Return the dynamic shift `mu` for `tokens` tokens, on the line through the configuration's two sizes; None without such a shift."""
    if tokens is None or not config.get("use_dynamic_shifting"):
        return None
    stated = {key: config[key] for key in _DYNAMIC_SHIFT if config.get(key) is not None}
    base, most, tokens_base, tokens_most = ({**_DYNAMIC_SHIFT, **stated}[key] for key in _DYNAMIC_SHIFT)
    return float(base + (most - base) * (tokens - tokens_base) / (tokens_most - tokens_base))


def mu_of_steps(tokens: int, steps: int) -> float:
    """Return FLUX.2's shift `mu` for a sample of `tokens` tokens; it is linear in the steps, and constant above `_MANY_TOKENS` tokens."""
    few, many = (slope * tokens + constant for slope, constant in _MU_OF_TOKENS)
    return many if tokens > _MANY_TOKENS else few + (many - few) * (steps - _FEW_STEPS) / (_MANY_STEPS - _FEW_STEPS)


def refuse_unsupported(config: Mapping[str, Any], *, tokens_known: bool = False) -> None:
    """Refuse a configuration that no table on a known noise schedule can follow. See `NoiseSchedule.from_scheduler_config`."""
    _refuse_class(config)
    _refuse_half_a_flow(config)
    plain_values = {**_PLAIN_VALUES, **_FLOW_SHIFTS}
    if _class(config).startswith("FlowMatch"):
        shifts = {} if tokens_known else {"use_dynamic_shifting": _FLOW_SHIFTS["use_dynamic_shifting"]}
        plain_values = {**_PLAIN_VALUES, **shifts}
    for key, plain in plain_values.items():
        if config.get(key, plain[0]) not in plain:
            raise UsageError(
                f"No sampler supports the scheduler configuration's {key}.",
                found=f"{key} = {json.dumps(config[key])}",
                expected=f"{key} = {json.dumps(plain[0])}",
                mend=_MEND.get(key, f"set {key} to {json.dumps(plain[0])} in scheduler_config.json, if the model samples well that way"),
            )
    if config.get("predict_epsilon") is False and config.get("prediction_type") in (None, "epsilon"):
        raise UsageError(
            "The scheduler configuration says in an old form that the network predicts the clean sample; today's diffusers ignores it.",
            found="predict_epsilon = false",
            expected='prediction_type = "sample"',
            mend='set prediction_type to "sample" in scheduler_config.json and remove predict_epsilon',
        )
    if config.get("thresholding"):
        raise UsageError(
            "Dynamic thresholding depends on the sample, so a table of coefficients cannot express it.",
            found="thresholding = true",
            expected="thresholding = false",
            mend="set thresholding to false and clip_sample to true for the fixed bound clip_sample_range",
        )
    variance_type = config.get("variance_type")
    if variance_type in _LEARNED_VARIANCE:
        raise UsageError(
            "The network outputs a learned variance at every step, so a table of coefficients cannot express it.",
            found=f"variance_type = {variance_type}",
            expected="fixed_small, fixed_small_log, fixed_large or fixed_large_log",
            mend=f'set variance_type to "{_LEARNED_VARIANCE[variance_type]}"; the network\'s variance channels are then not used',
        )


def _refuse_half_a_flow(config: Mapping[str, Any]) -> None:
    """Refuse the noise levels of a flow without its predictions, its predictions without the levels, or both in another class."""
    flow = bool(config.get("use_flow_sigmas")), config.get("prediction_type") == "flow_prediction"
    if any(flow) and not (all(flow) and _class(config) in _FLOW_FORMS):
        raise UsageError(
            "The scheduler configuration is that of a flow in part.",
            found=f"{_class(config)}, use_flow_sigmas = {json.dumps(flow[0])}, prediction_type = {config.get('prediction_type')}",
            expected=f"both use_flow_sigmas and flow_prediction, in {' or '.join(_FLOW_FORMS)}",
            mend="correct scheduler_config.json, or use FlowMatchEulerDiscreteScheduler's",
        )


def _refuse_class(config: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose noise schedule is not known. An unknown class must state its betas: it may have other defaults."""
    scheduler = _class(config)
    states_betas = config.get("trained_betas") is not None or all(config.get(key) is not None for key in _BETAS)
    if scheduler in _UNSUPPORTED or not (scheduler in _CLASS_DEFAULTS or states_betas):
        raise UsageError(
            "The model was trained with an unsupported noise schedule.",
            found=f"{scheduler}, {_UNSUPPORTED.get(scheduler, 'whose configuration states no betas')}",
            expected="the scheduler_config.json of a model trained on betas, such as DDPMScheduler's, or FlowMatchEulerDiscreteScheduler's",
            mend="save the model with the scheduler that it was trained with, if that is another",
        )


def _class(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name", ""))
